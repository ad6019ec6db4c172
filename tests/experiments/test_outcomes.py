"""What finished runs came to: the rate that trials choose, the edge of a grid, the checkpoint, the arm."""

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


def test_a_grid_grows_by_its_own_ratio():
    grid = [3e-4, 8e-4, 2e-3, 5e-3]
    assert outcomes.extended(grid, ["high"]) == [*grid, 1.25e-2]
    assert outcomes.extended(grid, {"low", "high"}) == [1.12e-4, *grid, 1.25e-2]
    assert outcomes.extended(grid, []) == grid


def record(folder, name, rank, metric, **summary):
    time = {"train_s": 90.0, "eval_s": 30.0}
    metric = {"name": "accuracy", "higher_is_better": True, "best": 0.6, "last": 0.5, **metric}
    config = {"rank": rank, "seed": 3, "train": {"lr": 0.01}}
    record = {"config": config, "summary": {"metric": metric, "time": time, **summary}}
    add_records(folder / FILE, {f"{name}-s3": record})


def test_the_study_s_checkpoint_is_the_one_that_counts(tmp_path):
    record(tmp_path / "seeds" / "t" / "lora", "a", 2, {"test": 0.4, "test_last": 0.3}, arm="lora@2")
    record(tmp_path / "tuning" / "t" / "lora", "b", 2, {}, arm="lora@2")
    for checkpoint, dev, test in (("last", 0.5, 0.3), ("best", 0.6, 0.4)):
        asked = read(study(checkpoint=checkpoint))
        (seed,), (tuning,) = (outcomes.outcomes(asked, tmp_path, stage, "t", "lora") for stage in ("seeds", "tuning"))
        assert (seed.dev, seed.value, seed.minutes, seed.rate, seed.seed, seed.run) == (dev, test, 2.0, 0.01, 3, "a-s3")
        assert (tuning.dev, tuning.value) == (dev, dev), "where test was not measured, dev is what there is"


def test_a_run_without_an_arm_is_known_by_its_rank(tmp_path):
    """Runs from before arms were recorded: method and rank, times the method's factor, say which budget they have."""
    asked = read(STUDY)
    for method, rank in (("lora", 8), ("high", 12), ("full", 8), ("lora", 3)):
        record(tmp_path / "seeds" / "t" / method, f"{method}{rank}", rank, {"test": 0.4})
    arms = {m: [o.arm for o in outcomes.outcomes(asked, tmp_path, "seeds", "t", m)] for m in ("lora", "high", "full")}
    assert arms == {"lora": ["lora", "lora@8"], "high": ["high@8"], "full": ["full"]}
