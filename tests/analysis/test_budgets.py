import json

import pytest

from analysis import cells
from analysis.budgets import mean_over_training
from analysis.load import read_runs
from analysis.tables import tables


def test_the_mean_over_training_step_by_step():
    """Written out: what is held in each of the ten steps."""
    records = [{"step": 2, "kept": 8}, {"step": 5, "kept": 4}]
    held = [12, 12, 12, 8, 8, 8, 4, 4, 4, 4]  # an allocation follows its step
    assert mean_over_training(records, 12, 10) == pytest.approx(sum(held) / 10)


def test_without_allocations_the_start_holds_throughout():
    assert mean_over_training([], 288, 100) == 288
    assert mean_over_training([], None, 100) is None
    assert mean_over_training([{"step": 2}], 12, 10) is None  # recorded, but unreadable: no number is made up


def test_an_allocation_after_the_last_step_changes_nothing():
    assert mean_over_training([{"step": 9, "kept": 1}], 12, 10) == 12


def test_the_grid_counts_four_ways_relative_to_lora(quickstart):
    (table,) = tables(read_runs(quickstart))
    grid = cells.grids(table)[1]
    assert list(grid.header[1:]) == ["initial triplets", "mean over training", "final triplets", "exact parameters"]
    lora, adalora = (dict(zip(grid.header, row, strict=True)) for row in grid.rows)
    assert lora["mean over training"] == "288"
    assert adalora["initial triplets"] == "432 (1.50×)"
    assert adalora["final triplets"] == "288 (1.00×)"
    folder = next(quickstart.glob("adalora-*-s0"))
    records = [json.loads(line) for line in (folder / "allocations.jsonl").read_text().splitlines()]
    kept = {record["step"]: record["kept"] for record in records}
    now, total = 432, 0
    for step in range(100):
        total += now
        now = kept.get(step, now)
    assert adalora["mean over training"] == f"{total / 100:,.0f} ({total / 100 / 288:.2f}×)"
