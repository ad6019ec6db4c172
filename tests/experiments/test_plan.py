"""The plan: where its spread comes from, the seeds and minutes that follow, and what it warns of."""

import json

import numpy as np
import pytest
from scipy.stats import nct, t

from adarank.errors import SettingError
from adarank.runs.packed import FILE
from analysis import claims, stats
from experiments import plan
from experiments.pack import add_records
from experiments.study import read
from tests.experiments.studies import study

TRIALS = {1e-3: 0.5, 1e-2: 0.6, 1e-1: 0.55}


def record(results, stage, method, arm, seed, value, rate=1e-2, minutes=2.0):
    metric = {"name": "accuracy", "higher_is_better": True, "best": value, "last": value}
    metric |= {"test": value, "test_last": value} if stage == "seeds" else {}
    summary = {"arm": arm, "metric": metric, "time": {"train_s": 60 * minutes, "eval_s": 0.0}}
    config = {"rank": 2, "seed": seed, "train": {"lr": rate}}
    record = {"config": config, "summary": summary}
    add_records(results / stage / "t" / method / FILE, {f"{arm}-{rate}-s{seed}": record})


@pytest.fixture
def asked():
    contrasts = [{"name": "rank", "of": "adalora", "against": "lora", "ranks": [2]}]
    return read(study({"contrasts": contrasts, "margins": {"t": 0.02}}, seeds=list(range(10))), "mine")


def trials(results, spread, seeds=(100, 101)):
    """Trials of adalora@2 and lora@2 at three rates; returns the pooled variance of each arm over the seeds."""
    draws, variances = np.random.default_rng(0), []
    for method in ("adalora", "lora"):
        found = []
        for rate, mean in TRIALS.items():
            values = draws.normal(mean, spread, len(seeds))
            found.append(values.var(ddof=1))
            for seed, value in zip(seeds, values, strict=True):
                record(results, "tuning", method, f"{method}@2", seed, value, rate, 1.0 if method == "lora" else 3.0)
        variances.append(np.mean(found))
    return variances


def test_unpaired_trials_bound_the_spread(asked, tmp_path):
    variances = trials(tmp_path, 0.01)
    claim, assay = plan.plan(asked, tmp_path)["claims"]
    assert (claim["of"], claim["against"], claim["margin"], claim["paired"]) == ("adalora@2", "lora@2", 0.02, False)
    assert claim["spread"] == pytest.approx(np.sqrt(2 * np.mean(variances)))
    assert claim["source"] == "unpaired trials of 2 of its arms"
    assert (assay["name"], assay["of"], assay["against"]) == ("assay", "lora@8", "lora@2")
    assert (assay["margin"], assay["level"]) == pytest.approx((0.06, 0.05))
    assert assay["spread"] == pytest.approx(np.sqrt(2 * variances[1]))
    assert assay["source"] == "unpaired trials of 1 of its arms"


def test_paired_runs_say_more_and_decide_seeds_and_power(asked, tmp_path):
    trials(tmp_path, 0.05)
    draws = np.random.default_rng(1)
    shared, d = draws.normal(0.6, 0.1, 6), draws.normal(0.01, 0.02, 6)
    for seed in range(6):
        record(tmp_path, "seeds", "adalora", "adalora@2", seed, shared[seed] + d[seed])
        record(tmp_path, "seeds", "lora", "lora@2", seed, shared[seed])
    found = plan.plan(asked, tmp_path)
    claim = found["claims"][0]
    assert (claim["paired"], claim["source"]) == (True, "6 pairs of seeds")
    assert claim["spread"] == pytest.approx(d.std(ddof=1))
    assert claim["difference"] == pytest.approx(d.mean())

    def power(n):
        shift, critical = 0.02 / claim["spread"] * n**0.5, t.isf(0.025, n - 1)
        return nct.sf(critical, n - 1, shift) + nct.cdf(-critical, n - 1, shift)

    assert claim["level"] == pytest.approx(0.05), "one claim: nothing to correct"
    assert claim["power"] == pytest.approx(power(10))
    assert power(claim["needed"]) >= 0.8 > power(claim["needed"] - 1)
    assert "adalora@2 − lora@2" in plan.text(found)


def test_trials_of_three_seeds_are_pairs(asked, tmp_path):
    trials(tmp_path, 0.01, seeds=(100, 101, 102))
    found = plan.plan(asked, tmp_path, earlier=True)["claims"][0]
    assert (found["paired"], found["source"]) == (True, "3 pairs of tuning")
    own = plan.plan(asked, tmp_path)["claims"][0]
    assert own["paired"] is False, "seed 102 is not one of the study's"


def test_another_study_of_the_same_task_gives_the_spread_and_minutes_of_its_arms(asked, tmp_path):
    draws = np.random.default_rng(2)
    values = draws.normal(0.6, [[0.01], [0.02], [0.03]], (3, 4))
    for arm, of_arm in zip(("r1", "r4", "r16"), values, strict=True):
        for seed, value in enumerate(of_arm):
            record(tmp_path, "seeds", arm, arm, seed, value, minutes=1.5)
    found = plan.plan(asked, tmp_path)
    differences = [values[0] - values[1], values[0] - values[2], values[1] - values[2]]
    for row in found["claims"]:
        assert row["spread"] == pytest.approx(np.sqrt(np.mean([d.var(ddof=1) for d in differences])))
        assert (row["source"], row["paired"], row["difference"]) == ("the seeds of 3 pairs of other arms", True, None)
    assert set(found["minutes_per_run"]["t"].values()) == {1.5}


def test_minutes_count_every_arm_and_trial(asked, tmp_path):
    trials(tmp_path, 0.01)
    found = plan.plan(asked, tmp_path)
    mean = np.mean([1.0, 1.0, 3.0, 3.0])  # lora@2, high@2 as lora@2, adalora@2, map@2 as adalora@2
    expected = {"lora@2": 1.0, "high@2": 1.0, "adalora@2": 3.0, "map@2": 3.0}
    expected |= dict.fromkeys(["full", "lora@8", "high@8", "adalora@8", "map@8"], mean)
    assert found["minutes_per_run"]["t"] == pytest.approx(expected)
    tuned = sum(expected[arm] for arm in ("full", "lora@2", "lora@8", "adalora@2", "adalora@8"))
    assert found["minutes"]["trials"]["t"] == pytest.approx(tuned * 3 * 2)
    assert found["minutes"]["seeds"]["t"] == pytest.approx(sum(expected.values()) * 10)
    assert found["minutes"]["total"] == pytest.approx(tuned * 6 + sum(expected.values()) * 10)
    assert any("no run tells how long full, lora@8" in warning for warning in found["warnings"])
    assert f"In total {found['minutes']['total']:.0f} minutes" in plan.text(found)
    assert json.loads(json.dumps(found))["hash"] == claims.digest(asked.claims)


@pytest.mark.parametrize(("shown", "warns"), [(0.05, True), (0.07, False), (-0.1, True)])
def test_a_margin_above_a_third_of_the_assay_is_warned_of(asked, tmp_path, shown, warns):
    for seed in (100, 101):
        record(tmp_path, "tuning", "lora", "lora@2", seed, 0.5)
        record(tmp_path, "tuning", "lora", "lora@8", seed, 0.5 + shown)
    warnings = plan.plan(asked, tmp_path)["warnings"]
    text = f"t: the assay, lora@8 − lora@2, is {shown:+.4f} here; the margin, 0.02, must be at most a third of it"
    assert (text in warnings) == warns


def test_what_the_trials_do_not_say_is_not_made_up(asked, tmp_path):
    record(tmp_path, "tuning", "lora", "lora@2", 100, 0.5)
    found = plan.plan(asked, tmp_path)
    assert [(row["spread"], row["needed"], row["power"]) for row in found["claims"]] == [(None, None, None)] * 2
    assert "t, rank: adalora@2 − lora@2: unknown, no trials of two seeds" in plan.text(found)
    assert "t: the assay, lora@8 − lora@2, lacks runs of both arms, so its difference is unknown" in found["warnings"]


def test_looks_cost_a_little_power(tmp_path):
    trials(tmp_path, 0.01)
    parts = {"margins": {"t": 0.02}, "looks": [4, 7]}
    looking = read(study(parts, seeds=list(range(10))))
    rows = plan.plan(looking, tmp_path)["claims"]
    assert rows[0]["level"] == stats.looks.levels((4, 7, 10), 0.05 / 4)[-1] < 0.05 / 4


def test_without_runs_there_is_no_plan(asked, tmp_path):
    with pytest.raises(SettingError, match=r"--plan must find finished runs of the study's tasks"):
        plan.plan(asked, tmp_path)


def test_a_study_without_claims_has_minutes(tmp_path):
    trials(tmp_path, 0.01)
    probed = study(seeds=list(range(10)), probe={"options": "--delta"})
    found = plan.plan(read(probed), tmp_path)
    assert (found["claims"], found["hash"], found["measured"]) == ([], None, True)
    text = plan.text(found)
    assert text.startswith("The study claims nothing about its metric; its minutes:")
    assert "warning: the measurements of the part probe take their own time" in text
    assert f"In total {found['minutes']['total']:.0f} minutes" in text
