import json

import pytest

from analysis import format_table
from analysis.load import read_runs
from analysis.rows import mean_over_training
from analysis.tables import tables
from tests.analysis.conftest import map_settings


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
    (grid,) = [grid for grid in format_table.further_tables(table) if grid.title == "The budget, counted four ways"]
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


def write_map(out, write_run, seed, shuffle_seed, shuffle="all", **how):
    config = map_settings(f"/elsewhere/adalora-0123456789-s{seed}", shuffle, shuffle_seed)
    digest = f"{len(list(out.glob('*'))):010x}"
    return write_run(out, "adalora", seed, config=config, digest=digest, **how)


def mapped(out):
    (table,) = tables(read_runs(out))
    return table, [row for row in table.rows if row.is_rank_map]


def test_the_seeds_of_a_map_are_one_row_with_an_interval(tmp_path, write_run):
    values = [0.70, 0.72, 0.74]
    for seed, value in enumerate(values):
        write_run(tmp_path, "adalora", seed)
        write_map(tmp_path, write_run, seed, shuffle_seed=seed, metric__test=value)
    table, (row,) = mapped(tmp_path)
    assert row.scores == dict(enumerate(values))
    assert row.half_width is not None
    assert len(table.rows) == 2
    assert table.labels[row] == "adalora 12 → 8, map shuffled (all)"


def test_two_shuffles_of_a_seed_are_two_rows(tmp_path, write_run):
    for seed in range(3):
        write_run(tmp_path, "adalora", seed)
        for shuffle_seed in (0, 1):
            write_map(tmp_path, write_run, seed, shuffle_seed, metric__test=0.7 + 0.1 * shuffle_seed)
    table, rows = mapped(tmp_path)
    assert sorted((row.settings["ranks_shuffle_seed"], *row.scores) for row in rows) == [("0", 0, 1, 2), ("1", 0, 1, 2)]
    assert len({table.labels[row] for row in table.rows}) == 3


def test_kinds_of_shuffle_stay_apart(tmp_path, write_run):
    for seed in range(2):
        write_run(tmp_path, "adalora", seed)
        for arm in ("none", "all"):
            write_map(tmp_path, write_run, seed, shuffle_seed=seed, shuffle=arm)
    _, rows = mapped(tmp_path)
    assert sorted(row.settings["ranks_shuffle"] for row in rows) == ["all", "none"]


def test_maps_of_two_methods_stay_apart(tmp_path, write_run):
    """Maps by two scores, of the same seeds or not, were torn into single runs or joined in one row."""
    for seed in range(3):
        for source, first in (("adalora-0123456789", 0), ("adalora-abcdef0123", 3)):
            config = map_settings(f"/elsewhere/{source}-s{seed + first}", "none", 0)
            write_run(tmp_path, "adalora", seed + first, config=config, digest=f"{source[-4:]}{seed:06x}")
    _, rows = mapped(tmp_path)
    assert sorted(tuple(row.scores) for row in rows) == [(0, 1, 2), (3, 4, 5)]


def test_maps_of_an_arm_are_one_row_whatever_their_triplets(tmp_path, write_run):
    """A budget in parameters leaves every seed another number of triplets."""
    for seed in range(3):
        write_map(tmp_path, write_run, seed, shuffle_seed=seed, rank__final={"a": seed + 1, "b": 1}, arm="map@2")
    _, (row,) = mapped(tmp_path)
    assert (len(row.scores), row.triplets) == (3, 3.0)


def test_maps_of_another_budget_stay_apart(tmp_path, write_run):
    for seed in range(2):
        write_run(tmp_path, "adalora", seed)
        for rank in (2, 8):
            write_map(tmp_path, write_run, seed, shuffle_seed=seed, rank__final={"a": rank, "b": rank})
    _, rows = mapped(tmp_path)
    assert sorted((row.triplets, len(row.scores)) for row in rows) == [(4.0, 2), (16.0, 2)]
