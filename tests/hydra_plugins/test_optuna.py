"""A search that goes on where it stopped, on the metric of the runs."""

import json
import signal
from types import SimpleNamespace

import pytest
import yaml

from tests.experiments.test_run import inside
from tests.hydra_plugins.sweeping import finished, start, wait_for

pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")

from hydra_plugins.adarank_optuna import Study, interrupted, study_name

SEARCH = ["-m", "hydra/sweeper=optuna_lr", "method=lora", "tiny=true"]


def rates(out):
    found = {}
    for name in finished(out):
        config = yaml.safe_load((out / name / "config.yaml").read_text())
        found[config["train"]["lr"]] = json.loads((out / name / "summary.json").read_text())["metric"]["best"]
    return found


@pytest.mark.slow
def test_it_searches_around_the_method_s_rate_and_goes_on(tmp_path):
    words = [*SEARCH, "train.steps=12", f"out={tmp_path}"]
    inside(*words, "hydra.sweeper.n_trials=1")
    assert set(rates(tmp_path)) == {2e-3}
    before = finished(tmp_path)
    more = inside(*words, "hydra.sweeper.n_trials=2")
    assert more.stdout.count("sweep: ") == 1  # one trial was left
    found = rates(tmp_path)
    assert len(found) == 2
    assert all(2e-4 <= rate <= 2e-2 for rate in found)
    assert f"{max(found.values()):.4f} on dev (method=lora tiny=true train.steps=12)" in more.stdout
    assert finished(tmp_path).items() >= before.items()
    again = inside(*words, "hydra.sweeper.n_trials=2")
    assert "sweep: " not in again.stdout
    best = yaml.safe_load((tmp_path / "optimization_results.yaml").read_text())
    assert best["best_value"] == max(found.values())


@pytest.mark.slow
def test_a_finished_run_still_has_its_metric(tmp_path):
    out = f"out={tmp_path}"
    inside("method=lora", "tiny=true", out)
    (best,) = rates(tmp_path).values()
    said = inside(*SEARCH, "hydra.sweeper.n_trials=1", out).stdout
    assert "finished already" in said
    assert f"{best:.4f} on dev" in said


@pytest.mark.slow
def test_trials_that_all_fail_end_with_a_sentence_and_the_job_s_status(tmp_path):
    done = inside(*SEARCH, "rank=999", "hydra.sweeper.n_trials=1", f"out={tmp_path}", status=2)
    assert "no trial gave a metric" in done.stderr
    assert "1 of 1 jobs failed" in done.stderr


def test_the_study_s_name_is_what_is_held_fixed():
    assert (
        study_name(["rank=8", "method=lora", "out=x", "tracker.mode=offline", "retry=failed"]) == "method=lora rank=8"
    )


def test_rates_that_were_interrupted_come_first():
    def trial(state, rate):
        waits = state == "WAITING"
        attributes = {"fixed_params": {"train.lr": rate}} if waits else {}
        return SimpleNamespace(
            state=SimpleNamespace(name=state), params={} if waits else {"train.lr": rate}, system_attrs=attributes
        )

    trials = [trial("RUNNING", 1.0), trial("RUNNING", 2.0), trial("COMPLETE", 2.0), trial("RUNNING", 3.0)]
    assert interrupted(SimpleNamespace(trials=[*trials, trial("WAITING", 3.0)])) == [1.0]


def test_no_interval_is_refused():
    with pytest.raises(Exception, match=r"hydra.sweeper.around must be greater than 1 \(got 1\)"):
        Study(1, "sqlite:///x", 2)


@pytest.mark.slow
def test_a_search_killed_in_a_trial_resumes_that_trial(tmp_path):
    words = ["hydra/sweeper=optuna_lr", "hydra.sweeper.n_trials=2", "method=lora", "tiny=true", "train.steps=300"]
    process = start(tmp_path, *words)
    wait_for(lambda: list(tmp_path.glob("*/metrics.jsonl")))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    inside("-m", *words, f"out={tmp_path}")
    assert len(finished(tmp_path)) == len(list(tmp_path.glob("lora-*"))) == 2
