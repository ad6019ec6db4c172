"""What finished runs came to: the rate that trials choose, the edge of a grid, the checkpoint, the arm."""

import math

import pytest

from adarank.errors import SettingError
from adarank.runs.packed import FILE
from experiments import outcomes
from experiments.outcomes import Outcome
from experiments.pack import add_records
from experiments.study import read
from tests.experiments.studies import STUDY, study


def trial(rate, dev, higher=True):
    return Outcome("lora@2", rate, 0, "run", dev, dev, "accuracy", higher, 1.0)


def test_the_rate_of_the_best_mean_is_chosen_and_the_edge_said():
    found = [trial(1, 0.9), trial(1, 0.1), trial(2, 0.6), trial(2, 0.6), trial(3, 0.2), trial(3, 0.3)]
    chosen = outcomes.choose(found, [3, 1, 2])
    assert (chosen["rate"], chosen["at_the_edge"], chosen["trials"]) == (2, False, 6)
    assert chosen["means"] == [[1, 0.5], [2, 0.6], [3, 0.25]]
    worse = outcomes.choose([t._replace(higher_is_better=False) for t in found], [1, 2, 3])
    assert (worse["rate"], worse["at_the_edge"]) == (3, True)
    assert (outcomes.ends({"a": chosen}), outcomes.ends({"a": chosen, "b": worse})) == (set(), {"high"})


def test_a_grid_of_one_rate_has_no_edge():
    assert outcomes.choose([trial(2, 0.6), trial(2, 0.5)], [2])["at_the_edge"] is False


def test_trials_of_another_grid_do_not_count():
    earlier = [trial(1, 0.9), trial(2, 0.6), trial(3, 0.2), trial(3, 0.3)]
    assert outcomes.choose(earlier, [1, 2])["trials"] == 2


def test_rates_tried_unequally_often_choose_nothing():
    with pytest.raises(SettingError, match="must try each rate equally often"):
        outcomes.choose([trial(1, 0.9), trial(1, 0.1), trial(2, 0.6)], [1, 2])
    with pytest.raises(SettingError, match="must try each rate equally often"):
        outcomes.choose([trial(1, 0.9)], [1, 2])


def test_a_rate_at_which_a_trial_diverged_is_never_chosen():
    found = [trial(1, 0.5), trial(1, 0.5), trial(2, 0.9), trial(3, 0.4), trial(3, 0.4)]
    chosen = outcomes.choose(found, [1, 2, 3], lost=[2])
    assert (chosen["rate"], chosen["means"], chosen["trials"]) == (1, [[1, 0.5], [2, None], [3, 0.4]], 6)
    with pytest.raises(SettingError, match=r"at least one rate must have no diverged trials \(got \[1, 2\]\)"):
        outcomes.choose([], [1, 2], lost=[1, 2])
    with pytest.raises(SettingError, match="must try each rate equally often"):
        outcomes.choose(found, [1, 2, 3])


def test_a_rate_without_a_metric_is_never_chosen():
    """A trial that diverged in its last update was called finished, and its metric, null, ended in a traceback."""
    found = [trial(1, 0.5), trial(1, 0.5), trial(2, 0.9), trial(2, math.nan)]
    assert outcomes.choose(found, [1, 2])["means"] == [[1, 0.5], [2, None]]
    with pytest.raises(SettingError, match="at least one rate must have no diverged trials"):
        outcomes.choose([trial(1, math.nan)], [1])


def test_a_grid_grows_by_its_own_ratio():
    grid = [3e-4, 8e-4, 2e-3, 5e-3]
    assert outcomes.extended(grid, ["high"]) == [*grid, 1.25e-2]
    assert outcomes.extended(grid, {"low", "high"}) == [1.12e-4, *grid, 1.25e-2]
    assert outcomes.extended(grid, []) == grid


def record(folder, name, rank, metric, seed=1, config=None, **summary):
    time = {"train_s": 90.0, "eval_s": 30.0}
    metric = {"name": "accuracy", "higher_is_better": True, "best": 0.6, "last": 0.5, **metric}
    config = {"rank": rank, "seed": seed, "train": {"lr": 0.01}, **(config or {})}
    record = {"config": config, "summary": {"metric": metric, "time": time, **summary}}
    add_records(folder / FILE, {f"{name}-s{seed}": record})


def test_the_study_s_checkpoint_is_the_one_that_counts(tmp_path):
    record(tmp_path / "seeds" / "t" / "lora", "a", 2, {"test": 0.4, "test_last": 0.3}, arm="lora@2")
    record(tmp_path / "tuning" / "t" / "lora", "b", 2, {}, seed=100, arm="lora@2")
    for checkpoint, dev, test in (("last", 0.5, 0.3), ("best", 0.6, 0.4)):
        asked = read(study(checkpoint=checkpoint))
        (seed,), (tuning,) = (outcomes.outcomes(asked, tmp_path, stage, "t", "lora") for stage in ("seeds", "tuning"))
        assert (seed.dev, seed.value, seed.minutes, seed.rate, seed.seed, seed.run) == (dev, test, 2.0, 0.01, 1, "a-s1")
        assert (tuning.dev, tuning.value) == (dev, dev), "where test was not measured, dev is what there is"


def test_a_metric_that_was_no_number_is_read_as_one(tmp_path):
    record(tmp_path / "seeds" / "t" / "lora", "a", 2, {"last": None, "test": None, "test_last": None}, arm="lora@2")
    (found,) = outcomes.outcomes(read(STUDY), tmp_path, "seeds", "t", "lora")
    assert math.isnan(found.dev)
    assert math.isnan(found.value)


def test_a_run_without_an_arm_is_known_by_its_rank(tmp_path):
    """Runs from before arms were recorded: method and rank, times the method's factor, say which budget they have."""
    asked = read(STUDY)
    for method, rank in (("lora", 8), ("high", 12), ("full", 8), ("lora", 3)):
        record(tmp_path / "seeds" / "t" / method, f"{method}{rank}", rank, {"test": 0.4})
    arms = {m: [o.arm for o in outcomes.outcomes(asked, tmp_path, "seeds", "t", m)] for m in ("lora", "high", "full")}
    assert arms == {"lora": ["lora", "lora@8"], "high": ["high@8"], "full": ["full"]}


def test_runs_of_seeds_that_the_study_does_not_have_do_not_count(tmp_path):
    """Pilots, and the trials of an earlier list of seeds, took part in the choice of the rate."""
    for seed in (0, 1, 100, 900):
        for stage in outcomes.STAGES:
            record(tmp_path / stage / "t" / "lora", "a", 2, {}, seed, arm="lora@2")

    def seeds(stage, **more):
        return [run.seed for run in outcomes.outcomes(read(STUDY), tmp_path, stage, "t", "lora", **more)]

    assert (seeds("tuning"), seeds("seeds")) == ([100], [0, 1])
    assert sorted(seeds("seeds", every_seed=True)) == [0, 1, 100, 900]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"train.steps": 200}, r"train.steps=100 for lora@2 on t \(got 200\); name other folders"),
        ({"targets": "qv"}, r"targets=all for lora@2 on t \(got qv\)"),
        ({"task.path": "other"}, r"task.path=data for lora@2 on t \(got other\)"),
        ({"train.steps": 100.0, "targets": "all", "task.path": "../data", "holdout": 0.25}, None),
        ({"schedule.t_i": 0.1, "model": "m", "penalty": "none", "train.shard": "fsdp2", "train.lr": 1.0}, None),
        ({"task.path": "/elsewhere/glue", "train.batch_size": 8, "test": True}, None),
        ({"holdout": 500}, r"holdout=0.25 for lora@2 on t \(got 500\)"),
        ({"train.head_lr": 0.001}, r"train.head_lr=None for lora@2 on t \(got 0.001\)"),
        ({"target_modules": ["value"]}, r"target_modules=\['key', 'query'\] for lora@2 on t \(got \['value'\]\)"),
        ({"target_modules": ["query", "key"], "init_rank": None, "train.batch_size": "auto"}, None),
    ],
)
def test_runs_that_were_made_with_other_settings_are_refused(settings, says, tmp_path):
    """Trials of 100 steps counted for a study that had come to ask for 200."""
    config = {"targets": "all", "holdout": 0.25, "penalty": None, "schedule": {"t_i": 10}, "model": {"_target_": "a.m"}}
    config |= {"train": {"lr": 0.01, "steps": 100, "shard": "none", "head_lr": None}, "task": {"path": "data"}}
    config |= {"target_modules": ["key", "query"], "init_rank": 3}
    record(tmp_path / "tuning" / "t" / "lora", "a", 2, {}, seed=100, config=config, arm="lora@2")
    record(tmp_path / "tuning" / "t" / "lora", "b", 2, {}, seed=100, config={"targets": "no"}, arm="no longer there")
    asked = read(study(settings={"tiny": True, **settings}))

    def check(*words):
        outcomes.refuse_other_settings(asked, tmp_path, tmp_path / "out", asked.tasks, words)

    if says is None:
        check()
    else:
        with pytest.raises(SettingError, match=f"the study must keep the settings of its runs, {says}"):
            check()
    check(
        "train.steps=100",
        "+targets=all",
        "task.path=data",
        "holdout=0.25",
        "train.head_lr=null",
        "target_modules=[query,key]",
    )
