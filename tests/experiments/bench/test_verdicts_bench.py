"""Simulated sweeps go through the code that judges a folder of runs; the committed figures keep what is promised."""

import json
from pathlib import Path

import numpy as np
import pytest

from analysis.verdicts import family
from experiments.bench import verdicts

RESULTS = Path(__file__).resolve().parents[3] / "experiments" / "results"


def test_a_simulated_table_is_judged_like_one_of_runs():
    drawn = verdicts.scores("null", 6, np.random.default_rng(0))
    drawn[:, 1] = drawn[:, 0] + 0.05 + 0.001 * np.arange(6)
    judged = family([verdicts.table(0, drawn)]).verdicts[0]
    assert [verdict.comparison.label for verdict in judged] == ["a", "b", "c", "d", "e"]
    assert judged[0].winner == "a"
    assert judged[0].difference == pytest.approx(0.0525)


def test_a_collapsed_run_counts_as_one():
    drawn = verdicts.scores("collapse", 200, np.random.default_rng(1))
    assert 0.08 < (drawn[:, 1] == verdicts.MAJORITY).mean() < 0.22
    (first, *_) = family([verdicts.table(0, drawn)]).verdicts[0]
    assert first.comparison.rows[0].failures[0] == (drawn[:, 1] == verdicts.MAJORITY).sum()


def test_the_committed_simulation_keeps_its_promises():
    """At most 5 % of pages without a difference call a method better; at five seeds and 1.5 SD the power is .6."""
    found = json.loads((RESULTS / "verdicts_simulated.json").read_text())
    assert found["sweeps"] >= 4_000
    for scenario in ("null", "skewed", "collapse"):
        assert max(found["share"][scenario].values()) <= 0.05, scenario
    assert found["share"]["better, 1 task"]["5"] >= 0.6
    assert max(found["share"]["margin"].values()) <= 0.05
