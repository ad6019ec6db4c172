"""experiments/probe.py on tiny runs, and what the report makes of it."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import adarank
from adarank.adapters.lowrank import adapters_of
from adarank.harness.data.task_types import classify
from adarank.probe import cli
from adarank.probe.reload import load_trained_weights, open_run
from adarank.runs.lock import locked
from analysis.report import load, write_report
from experiments import collect
from tests.experiments.test_run import ROOT, inside


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """An AdaLoRA run, another of its seeds, full fine-tuning, BitFit."""
    folder = tmp_path_factory.mktemp("probe")
    for words in (["method=adalora", "seed=0"], ["method=adalora", "seed=1"], ["method=full"], ["method=bitfit"]):
        inside(*words, "tiny=true", "rank=2", f"out={folder}")
    return folder


@pytest.fixture
def run(out):
    (folder,) = out.glob("adalora-*-s0")
    return folder


def call(*arguments):
    return cli.main([str(argument) for argument in arguments])


def test_a_finished_run_is_probed_and_the_report_shows_it(run, monkeypatch, capsys, tmp_path):
    assert call(run, "--rows", 12, "--passes", 2) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(run / "probe.json")
    assert not (run / "probe.jsonl").exists()
    found = json.loads((run / "probe.json").read_text())
    final = json.loads((run / "summary.json").read_text())["rank"]["final"]
    assert found["modules"] == final
    assert len(found["rise"]) == sum(final.values()) == 24
    assert np.isfinite(found["rise"]).all()
    assert found["rows"] == 12
    assert [len(half) for half in found["halves"]] == [24, 24]
    assert {len(values) for values in found["scores"].values()} == {24}
    page = write_report(run.parent, load(run.parent)).read_text()
    assert "Score fidelity:" in page
    assert "smoothed_sensitivity" in page
    target = tmp_path / "gathered.json"
    monkeypatch.setattr("sys.argv", ["collect.py", str(run.parent), str(target), "--name", "probe.json"])
    assert collect.main() == 0
    assert json.loads(target.read_text()) == {run.name: found}


def test_processes_that_share_a_list_measure_each_run_once(out, capsys):
    runs = sorted(out.glob("adalora-*"))
    for file in (run / "delta.json" for run in runs):
        file.unlink(missing_ok=True)
    with locked(runs[0]):
        assert call(*runs, "--delta", "--missing") == 0
        assert call(runs[0], "--delta") == 2
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        f"{runs[0]}: another process trains or measures it; skipped here",
        str(runs[1] / "delta.json"),
    ]
    assert said.err == f"error: {runs[0]} is trained or measured by another process; wait until it ends\n"
    assert call(*runs, "--delta", "--missing") == 0
    assert capsys.readouterr().out.splitlines() == [str(runs[0] / "delta.json")]


def test_a_user_s_own_scores_are_probed_or_named(run, monkeypatch, capsys):
    """A second score that reads activations, and one that has no defaults, used to end in a traceback."""
    monkeypatch.setattr(adarank.scores, "second", adarank.scores.output, raising=False)
    monkeypatch.setattr(adarank.scores, "powerless", lambda power: None, raising=False)
    monkeypatch.setattr(adarank.scores, "__all__", [*adarank.scores.__all__, "second", "powerless"])
    assert call(run, "--rows", 4, "--passes", 1) == 0
    assert capsys.readouterr().err.startswith(
        "score powerless is omitted, because it cannot be built with its defaults"
    )
    scores = json.loads((run / "probe.json").read_text())["scores"]
    assert scores["second"] == scores["output"]
    assert "powerless" not in scores


@pytest.mark.slow
def test_the_script_is_the_same_command():
    done = subprocess.run([sys.executable, ROOT / "experiments" / "probe.py", "absent"], capture_output=True, text=True)
    assert done.returncode == 2
    assert (
        done.stderr
        == "error: absent must be the folder of a finished run (summary.json or config.yaml is missing or damaged)\n"
    )


@pytest.mark.slow
def test_what_was_measured_before_it_was_stopped_is_not_measured_again(run, monkeypatch):
    from adarank.probe import score_fidelity

    assert call(run, "--rows", 16, "--passes", 1) == 0
    whole = json.loads((run / "probe.json").read_text())
    (run / "probe.json").unlink()
    ablate = score_fidelity.ablate
    begun = []

    def stopped(*arguments):
        begun.append(arguments[-1])
        yield next(ablate(*arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(score_fidelity, "ablate", stopped)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            call(run, "--rows", 16, "--passes", 1)
    monkeypatch.setattr(score_fidelity, "ablate", lambda *arguments: begun.append(arguments[-1]) or ablate(*arguments))
    assert call(run, "--rows", 16, "--passes", 1) == 0
    assert begun == [0, 1, 2]
    assert json.loads((run / "probe.json").read_text()) == whole


@pytest.mark.slow
def test_the_change_of_the_weights_and_the_directions_two_runs_share(out, run):
    (other,) = out.glob("adalora-*-s1")
    (full,) = out.glob("full-*")
    assert call(run, full, "--delta", "--with", other) == 0
    adapted, whole = (json.loads((folder / "delta.json").read_text()) for folder in (run, full))
    final = json.loads((run / "summary.json").read_text())["rank"]["final"]
    assert {name: module["rank"] for name, module in adapted["modules"].items()} == {
        n: r for n, r in final.items() if r
    }
    assert whole["modules"].keys() == final.keys()
    for module in whole["modules"].values():
        assert module["rank"] == min(module["sides"])
        assert module["orthogonality"] is None
        assert module["norm"] > 0
    assert all(0 <= module["orthogonality"]["P"] < 1 for module in adapted["modules"].values())
    shared = json.loads((run / "similarity.json").read_text())["with"][other.name]
    for name, module in shared.items():
        assert np.array(module["input"]).shape[0] == final[name]
        assert 0 <= np.min(module["output"]) <= np.max(module["output"]) <= 1
    page = write_report(out, load(out)).read_text()
    for title in ("The weight change ΔW", "Singular values of ΔW", "φ(i, j)", "Intruder dimensions"):
        assert title in page, title


def test_a_run_against_itself_shares_every_direction(run):
    assert call(run, "--with", run) == 0
    for module in json.loads((run / "similarity.json").read_text())["with"][run.name].values():
        assert np.diag(module["input"]) == pytest.approx(np.ones(len(module["input"])), abs=1e-4)


@pytest.mark.slow
def test_forgetting_beside_the_metric(out, tmp_path):
    (run,) = out.glob("full-*")
    folder = tmp_path / "STS-B"
    folder.mkdir()
    draw = np.random.default_rng(0)
    texts = ["".join(draw.choice(list("abcdefgh "), 12)) + "." for _ in range(120)]
    lines = [f"g\tf\ty\t0\t{i % 6 + 0.5}\t{texts[i]}\t{texts[60 + i]}" for i in range(60)]
    for split in ("train", "dev", "test"):
        (folder / f"sts-{split}.csv").write_text("\n".join(lines) + "\n")
    assert call(run, "--stsb", tmp_path) == 0
    found = json.loads((run / "forgetting.json").read_text())["stsb"]
    assert (found["rows"], found["split"]) == (60, "test")
    assert -1 <= found["before"] != found["after"] <= 1
    page = write_report(out, load(out)).read_text()
    assert "Learned and forgotten" in page


def test_the_prefixes_of_a_run_end_at_its_own_result(run):
    assert call(run, "--prefixes", "2,1") == 0
    found = json.loads((run / "prefixes.json").read_text())
    metric = json.loads((run / "summary.json").read_text())["metric"]
    largest = max(json.loads((run / "summary.json").read_text())["rank"]["final"].values())
    assert (found["ranks"], found["metric"], len(found["dev"])) == ([1, 2], metric["name"], 2)
    assert call(run, "--prefixes", str(largest)) == 0
    found = json.loads((run / "prefixes.json").read_text())
    assert [found["dev"], found["test"]] == [[metric["best"]], [metric["test"]]]
    assert found["svd"] == {"dev": found["dev"], "test": found["test"]}, "nothing is cut at the largest rank"


def test_the_cut_by_svd_is_the_best_approximation_of_every_module(tmp_path, monkeypatch):
    inside("method=matryoshka", "tiny=true", "rank=4", f"out={tmp_path}")
    (folder,) = tmp_path.glob("matryoshka-*")
    run = open_run(folder)
    load_trained_weights(run)
    whole = {name: adapter.delta().detach() for name, adapter in adapters_of(run.model).items()}
    changes = []

    def evaluate(model, *_):
        changes.append({name: adapter.delta().detach() for name, adapter in adapters_of(model).items()})
        return {"accuracy": 0.5}

    monkeypatch.setattr(classify, "evaluate", evaluate)
    assert call(folder, "--prefixes", "1,3") == 0
    prefixes, svd = changes[: len(changes) // 2], changes[len(changes) // 2 :]
    assert len(svd) == 4, "dev and test at each rank, the largest first"
    for name, delta in whole.items():
        U, sigma, Vt = torch.linalg.svd(delta)
        for found, rank in zip(svd, (3, 3, 1, 1), strict=True):
            torch.testing.assert_close(found[name], U[:, :rank] * sigma[:rank] @ Vt[:rank], rtol=1e-4, atol=1e-6)
        assert (prefixes[-1][name] - delta).norm() > (svd[-1][name] - delta).norm()


@pytest.mark.parametrize(
    ("method", "arguments", "says"),
    [
        ("bitfit-*", ("--prefixes", "1"), "--prefixes needs a low-rank method"),
        ("adalora-*-s0", ("--prefixes", "99"), "the run's largest rank (got 99)"),
        ("adalora-*-s0", ("--prefixes", "1,x"), "--prefixes must be whole numbers of at least 1, as in 1,2,4,8 (got"),
        ("absent", (), "absent must be the folder of a finished run"),
        (
            "adalora-*-s0",
            ("--pruning",),
            "--pruning needs a run that keeps all of its triplets, such as method=svd_lora",
        ),
        ("adalora-*-s0", ("--pruning", "--keep", "2"), "--keep must be shares of the triplets between 0 and 1"),
        ("adalora-*-s0", ("--rows", "0"), "--rows must be a whole number of at least 1 (got 0)"),
        ("full-*", (), "has no triplets to ablate; choose a finished run of a low-rank method"),
        ("bitfit-*", ("--delta",), "changed no matrix"),
        (
            "adalora-*-s0",
            ("--stsb", "absent"),
            "task.path must be a folder with the task's files (absent does not exist)",
        ),
        ("adalora-*-s0", ("--text", "absent"), "--text absent must be a text file in UTF-8 ("),
        ("adalora-*-s0", ("--text", __file__), "--text needs a causal language model, but the model of"),
    ],
)
def test_what_cannot_be_probed_is_one_sentence(out, method, arguments, says, capsys):
    folder = next(out.glob(method), method)
    assert call(folder, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert says in error
    assert error.count("\n") == 1
