import pytest
from scipy import stats as reference

from analysis.load import read_runs
from analysis.plots import agreement
from analysis.tables import tables


def test_the_mark_is_the_correlation_and_the_band_its_chance_level(quickstart):
    (table,) = tables(read_runs(quickstart))
    row = table.rows[2]
    axes = agreement.draw(table, [row]).axes[0]
    band, mark = axes.get_lines()
    first, second = (list(run.summary["rank"]["final"].values()) for run in row.runs)
    assert mark.get_xdata()[0] == pytest.approx(reference.spearmanr(first, second).statistic)
    assert list(band.get_xdata()) == pytest.approx([-1.96 / 35**0.5, 1.96 / 35**0.5], abs=0.05)
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["adalora 12 → 8  (2 seeds)"]


def test_uniform_maps_and_single_seeds_have_nothing_to_compare(quickstart):
    (table,) = tables(read_runs(quickstart))
    assert agreement.draw(table, table.rows[:2]) is None  # full has no ranks, lora's are all alike
