"""experiments/rankbench/early.py: the first steps of RankBench's runs as cases that experiments/forecast.py reads."""

import json
import math
import sys
from itertools import islice
from statistics import fmean

import pytest

from experiments import forecast
from experiments.rankbench import early
from experiments.rankbench.measure import UNIFORM, make_case, start
from experiments.rankbench.problems import draw
from experiments.rankbench.settings import parse

SETTING = parse("network,ranks=8x3,noise=0.1")


def cell(losses, rate=5e-2):
    return {"rank": 2, "budgeted": True, "rate": rate, "seeds": {str(s): {"loss": v} for s, v in enumerate(losses)}}


@pytest.fixture
def record():
    """Two seeds; at r = 2 AdaLoRA has half of the loss of its control, at r = 4 the same loss."""
    of_rank = {
        rank: {early.ADAPTIVE: cell(ours), early.CONTROL: cell([0.2, 0.4]), UNIFORM: cell([0.2, 0.4])}
        for rank, ours in (("2", [0.1, 0.2]), ("4", [0.2, 0.4]))
    }
    return {"settings": {SETTING.name: {"cells": of_rank}}}


def test_the_first_steps_are_those_of_the_whole_run_and_see_the_planted_modules():
    problem, case = draw(SETTING, 0), make_case(early.ADAPTIVE, SETTING, 2, 200)
    loss, scores = early.first_steps(problem, case, 0, 5e-2, 64)
    _, _, losses = start(problem, case.spec, 0, 5e-2, 64)
    assert loss == pytest.approx(fmean(islice(losses, 10)) / problem.untrained["dev"])
    assert list(scores) == problem.base.names
    inside = fmean(scores[name] for name in problem.planted)
    outside = fmean(value for name, value in scores.items() if name not in problem.planted)
    assert inside > 1.5 * outside


def test_a_case_has_the_gain_over_the_control_in_logarithms(record, tmp_path):
    cases = early.cases_of(record)
    assert [case["difference"] for case in cases] == pytest.approx([math.log(2), 0.0])
    assert {case["margin"] for case in cases} == {math.log(1.1)}
    (file := tmp_path / "cases.json").write_text(json.dumps({"cases": cases}))
    read = forecast.cases_of(file, 0.05)
    assert [case.gain for case in read] == [True, False]
    assert all(0 < case.features["gini"] < 1 and -1 <= case.features["agreement"] <= 1 for case in read)
    assert read[0].features["slope"] == read[1].features["slope"] > 0, "rank helps where eight were planted"
    assert [case.features["low_budget"] for case in read] == [-2, -4]
    assert {(case.setting, case.stratum, case.features["few_modules"]) for case in read} == {
        (SETTING.name, "3 planted modules", -3.0)
    }


def test_without_a_second_rank_there_is_no_slope(record):
    del record["settings"][SETTING.name]["cells"]["4"]
    (case,) = early.cases_of(record)
    assert case["features"]["slope"] is None


@pytest.mark.parametrize("text", ["", "[]", "{}", None])
def test_other_files_are_refused_in_a_sentence(text, tmp_path, monkeypatch, capsys):
    file = tmp_path / "rankbench.json"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr(sys, "argv", ["early.py", "--json", str(file), "--cases", str(tmp_path / "cases.json")])
    assert early.main() == 2
    assert f"error: --json must be a file that rankbench/run.py wrote (got {file})" in capsys.readouterr().err
    assert not (tmp_path / "cases.json").exists()
