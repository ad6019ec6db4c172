import pytest

from adarank.runs.files import read_lines
from analysis.load import read_runs
from analysis.plots import budget
from analysis.tables import tables


def test_mean_rank_from_creation_to_the_end(quickstart):
    (table,) = tables(read_runs(quickstart))
    row = table.rows[2]
    allocations = {run.name: read_lines(run.folder / "allocations.jsonl")[0] for run in row.runs}
    axes = budget.draw(table, [row], allocations).axes[0]
    (line,) = axes.get_lines()
    assert list(line.get_xdata()) == [0, *range(10, 101, 10)]
    assert line.get_ydata()[0] == 12
    assert line.get_ydata()[-1] == pytest.approx(8)
    assert axes.get_ylabel() == "mean rank per module (triplets)"
    assert axes.get_ylim()[0] == 0


def test_nothing_to_draw_without_allocations(quickstart):
    (table,) = tables(read_runs(quickstart))
    assert budget.draw(table, table.rows, {}) is None
