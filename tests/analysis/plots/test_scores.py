import numpy as np
import pytest

from analysis.load import read_runs
from analysis.plots import scores
from analysis.tables import tables


def found(out, quantiles):
    (table,) = tables(read_runs(out))
    row = table.rows[2]
    last = {"step": 9, "score_quantiles": {module: quantiles(place) for place, module in enumerate(row.ranks)}}
    return table, row, {row.runs[0].name: [{"step": 1, "score_quantiles": {}}, last, {"step": 11}]}


def test_the_last_allocation_s_quantiles_are_drawn(quickstart):
    table, row, allocations = found(quickstart, lambda place: [0.0, 1.0, 2.0 + place, 50.0, 60.0])
    values = scores.last_quantiles(row, allocations)
    assert values.shape == (36, 5)
    axes = scores.draw(table, [row], allocations).axes[0]
    assert len(axes.get_lines()) == 6  # a kind each
    medians = np.concatenate([line.get_ydata() for line in axes.get_lines()])
    assert sorted(medians) == sorted(values[:, 2])
    thin = axes.collections[0].get_segments()[0]
    assert thin[:, 1] == pytest.approx([1.0, 60.0])  # on the log scale zero stands at the smallest positive score
    assert axes.get_yscale() == "log"
    assert (axes.get_ylabel(), axes.get_title()) == ("score", "adalora 12 → 8")


def test_negative_scores_keep_a_plain_scale(quickstart):
    table, row, allocations = found(quickstart, lambda place: [-5.0, 1e-3, 1.0, 50.0, 60.0])
    assert scores.draw(table, [row], allocations).axes[0].get_yscale() == "linear"


def test_nothing_without_scores(quickstart):
    table, row, allocations = found(quickstart, lambda place: [None] * 5)
    assert scores.draw(table, [row], allocations) is None
    assert scores.draw(table, [row], {}) is None
