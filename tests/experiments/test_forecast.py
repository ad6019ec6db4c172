"""experiments/forecast.py: cases of runs and of JSON files, their features, and what too few of them say."""

import json
import sys

import numpy as np
import pytest
from scipy import stats as reference

from analysis import claims
from analysis.load import read_runs
from analysis.tables import tables
from experiments import forecast
from experiments.pack import pack
from tests.analysis.conftest import modules, write_lines, write_run
from tests.experiments.test_run import inside

NAMES = modules()


def adaptive(out, task, seed, gain, scores, rank=8, steps=100):
    """An AdaLoRA run with a record of its scores at 5 % and at 10 % of the steps, and its uniform control."""
    for allocator, more in (("global_top", gain), ("uniform", 0.0)):
        config = {"allocator": allocator, "task": task, "rank": rank}
        level = 0.7 + more + 0.001 * seed
        folder = write_run(out, "adalora", seed, rank, config=config, task=task, metric__test=level)
        records = [
            {"step": step - 1, "budget": 1, "kept": 1, "ranks": dict.fromkeys(NAMES, 1), **about}
            for step, about in (
                (steps // 20, {"observed": True, "score_means": dict(zip(NAMES, scores, strict=True))}),
                (steps // 10, {"score_means": dict.fromkeys(NAMES, 1.0)}),
            )
        ]
        write_lines(folder / "allocations.jsonl", records)
    return folder


def lora(out, task, seed, rank, early_loss):
    folder = write_run(out, "lora", seed, rank, task=task, config={"task": task, "rank": rank})
    records = [{"step": step, "split": "train", "loss": loss} for step, loss in ((5, early_loss), (6, 9.0))]
    write_lines(folder / "metrics.jsonl", records)


@pytest.fixture
def out(tmp_path):
    """Two tasks: on `spread` the scores differ and the map gains a point, on `flat` they hardly do and nothing is gained."""
    draw = np.random.default_rng(0)
    for task, gain, spread in (("spread", 0.01, 2.0), ("flat", 0.001, 0.01)):
        shared = draw.normal(size=len(NAMES))
        for seed in range(3):
            adaptive(tmp_path, task, seed, gain, np.exp(spread * shared + 0.01 * draw.normal(size=len(NAMES))))
            for rank in (2, 8):
                lora(tmp_path, task, seed, rank, 0.7 - 0.02 * np.log2(rank) - 0.01 * seed)
    return tmp_path


def test_a_case_is_an_allocation_beside_its_uniform_control(out, tmp_path):
    by_name = {case.case.split(", ")[1]: case for case in forecast.cases_of(out, 0.05)}
    assert {task: (case.gain, case.margin) for task, case in by_name.items()} == {
        "spread": (True, 0.005),
        "flat": (False, 0.005),
    }
    assert by_name["spread"].difference == pytest.approx(0.01)
    spread, flat = (by_name[task].features for task in ("spread", "flat"))
    assert spread["gini"] > 0.5 > 0.05 > flat["gini"]
    assert spread["cv"] > 1 > flat["cv"]
    assert spread["agreement"] > 0.9 > flat["agreement"]
    assert spread["slope"] == pytest.approx(0.02), "for every doubling of the rank"


def test_features_see_no_more_than_the_first_steps(out):
    (table, *_) = tables(read_runs(out))
    run = next(run for row in table.rows if row.adaptive for run in row.runs)
    assert set(forecast.early_scores(run, 0.1).values()) == {1.0}, "the record after 10 %"
    assert len(set(forecast.early_scores(run, 0.05).values())) > 1
    assert forecast.early_scores(run, 0.04) == {}
    assert forecast.slope(table, 0.04) is None


def test_the_results_of_a_study_are_the_same_cases_by_its_own_margins(out, tmp_path_factory):
    place = tmp_path_factory.mktemp("study")
    expected = forecast.cases_of(out, 0.05)
    pack(out, place / "results" / "seeds")
    pack(out, place / "results" / "tuning")
    assert forecast.cases_of(place / "results", 0.05) == expected
    content = {
        "seeds": 3,
        "margins": {"spread": 0.02, "flat": 0.0005},
        "contrasts": [{"name": "a", "of": "a", "against": "b", "tasks": ["spread", "flat"], "ranks": None}],
        "assay": {"of": "a", "against": "b"},
    }
    claims.write(place / "results", claims.read(content), "mine", 0)
    gains = {case.case.split(", ")[1]: (case.gain, case.margin) for case in forecast.cases_of(place / "results", 0.05)}
    assert gains == {"spread": (False, 0.02), "flat": (True, 0.0005)}


def test_scores_are_read_from_quantiles_where_an_allocation_was_that_early(tmp_path):
    folder = adaptive(tmp_path, "t", 0, 0.0, np.ones(len(NAMES)))
    quantiles = {name: [0.0, 0.1, float(i), 8.0, 9.0] for i, name in enumerate(NAMES)}
    write_lines(
        folder / "allocations.jsonl", [{"step": 4, "ranks": dict.fromkeys(NAMES, 1), "score_quantiles": quantiles}]
    )
    run = next(run for run in read_runs(tmp_path) if run.folder == folder)
    assert list(forecast.early_scores(run, 0.05).values()) == [float(i) for i in range(len(NAMES))]


@pytest.mark.parametrize("values", [[1.0, 1.0, 1.0], [0.0, 0.0, 5.0], [1.0, 2.0, 3.0, 10.0]])
def test_gini_is_half_the_relative_mean_difference(values):
    expected = np.abs(np.subtract.outer(values, values)).mean() / (2 * np.mean(values))
    assert forecast.gini(values) == pytest.approx(expected)


def test_cases_of_a_benchmark_are_read_and_judged(tmp_path, monkeypatch, capsys):
    draw = np.random.default_rng(1)
    gains = [True, False] * 8
    listed = [
        {
            "case": str(i),
            "features": {
                "told": float(gain) + 0.3 * draw.normal(),
                "blind": draw.normal(),
                "rare": 1.0 if i < 4 else None,
            },
            **({"gain": gain} if i % 4 else {"difference": 0.01 if gain else -0.01, "margin": 0.005}),
        }
        for i, gain in enumerate(gains)
    ]
    file, target = tmp_path / "cases.json", tmp_path / "found.json"
    file.write_text(json.dumps({"cases": listed}))
    monkeypatch.setattr(sys, "argv", ["forecast.py", str(file), "--json", str(target)])
    assert forecast.main() == 0
    told, blind, rare = json.loads(target.read_text())["features"]
    values = [case["features"]["told"] for case in listed]
    u = reference.mannwhitneyu(values[::2], values[1::2]).statistic
    assert told["auroc"] == pytest.approx(u / 64)
    assert told["interval"][0] > 0.5
    assert blind["interval"][0] < 0.5 < blind["interval"][1]
    assert (rare["cases"], rare["auroc"], rare["enough"]) == (4, 0.5, False)
    printed = capsys.readouterr().out
    assert printed.startswith("16 cases, 8 of them with a gain\ntold: AUROC ")
    assert "Too few cases for rare: fewer than 5 with a gain or fewer than 5 without." in printed


def test_cases_of_one_setting_count_together_and_strata_are_looked_into():
    """The feature is the setting's number, every setting has all gains or none: no more cases than settings."""
    alone = [forecast.Case(str(i), {"x": float(i + 3 * (i % 2))}, bool(i % 2)) for i in range(8)]
    several = [case._replace(case=f"{case.case}.{k}", setting=case.case) for case in alone for k in range(6)]
    (one,), (many,) = forecast.forecast(alone), forecast.forecast(several)
    assert one["auroc"] == many["auroc"]
    unaware = [case._replace(setting=None) for case in several]
    width = {name: row["interval"][1] - row["interval"][0] for name, row in
             (("many", many), ("unaware", forecast.forecast(unaware)[0]))}  # fmt: skip
    assert width["many"] > 1.5 * width["unaware"]
    strata = [
        forecast.Case(f"{s}{i}", {"x": 10.0 * s + (i if s else -i)}, bool(i) if s else i == 0, stratum=str(s))
        for s in (0, 1)
        for i in (0, 1)
    ]
    (row,) = forecast.forecast([*strata, *alone])
    assert (row["within"], row["pairs"]) == (1.0, 2), "cases that name no stratum are in none"
    (row,) = forecast.forecast(strata)
    assert (row["within"], row["pairs"]) == (1.0, 2)
    assert row["auroc"] == 0.75
    assert "; within strata 1.00 [1.00, 1.00] (2 pairs)" in forecast.text(strata, [row])
    stratified = [case._replace(stratum=str(int(case.case) % 3 == 0)) for case in alone] * 3
    (row,) = forecast.forecast(stratified)
    low, high = row["within_interval"]
    assert low <= row["within"] <= high
    assert high - low > 0.1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "SOURCE must be a folder of runs or a JSON file of cases"),
        (
            '[{"case": "a"}]',
            "SOURCE must be a JSON file with a list of cases, each with case, features and either gain",
        ),
        ("[]", "SOURCE must hold a method and the same one with allocator=uniform"),
        (
            '[{"case": "a", "features": {}, "gain": true, "setting": ["x"]}]',
            "SOURCE must be a JSON file with a list of cases, each with case, features and either gain",
        ),
    ],
)
def test_a_source_without_cases_is_one_sentence(tmp_path, monkeypatch, capsys, content, says):
    file = tmp_path / "cases.json"
    if content is not None:
        file.write_text(content)
    monkeypatch.setattr(sys, "argv", ["forecast.py", str(file)])
    assert forecast.main() == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {says}")
    assert error.count("\n") == 1


def test_a_run_records_its_scores_early_without_being_another_run(tmp_path):
    """In warm-up, where no allocation is due: one more line, the same name, the same weights."""
    words = ("method=adalora", "rank=2", "tiny=true", "train.steps=24", "schedule.t_i=8")
    inside(*words, f"out={tmp_path / 'plain'}")
    inside(*words, "train.observe_scores=0.125", f"out={tmp_path / 'observed'}")
    (plain,), (observed,) = ((tmp_path / name).iterdir() for name in ("plain", "observed"))
    assert plain.name == observed.name
    weights = [folder / "adapter" / "adapter.safetensors" for folder in (plain, observed)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    (run,) = read_runs(tmp_path / "observed")
    scores = forecast.early_scores(run, 0.125)
    assert (len(scores), len(set(scores.values()))) == (12, 12)
    lines = [(folder / "allocations.jsonl").read_text().splitlines() for folder in (plain, observed)]
    record = json.loads(lines[1][1])
    assert (record["step"], record["observed"], record["kept"]) == (2, True, 36)
    quantiles = record["score_quantiles"]
    assert all(min(quantiles[name]) <= scores[name] <= max(quantiles[name]) for name in scores)
    ranks = [[json.loads(line)["ranks"] for line in of_run[1:]] for of_run in lines]
    assert ranks[1][1:] == ranks[0]
