"""One method with and without its control in a sweep: two kinds of row, told apart wherever rows are grouped."""

import pytest

from analysis import cells, controls
from analysis.across import across
from analysis.load import read_runs
from analysis.tables import kind_and_ranks, tables
from analysis.trials import searches
from analysis.verdicts import verdicts

PIECES = ("adarank.allocators.global_top", "adarank.allocators.uniform")


def write_arms(out, write_run, task="cola", seeds=8, gain=0.03, ranks=(8,), rates=(0.01,)):
    """LoRA, the uniform control half of `gain` above it, AdaLoRA `gain` above it."""
    for seed in range(seeds):
        for rank in ranks:
            level = 0.6 + 0.01 * seed
            write_run(out, "lora", seed, rank, config={"task": task}, task=task, metric__test=level)
            for place, target in enumerate(PIECES):
                for rate in rates:
                    config = {"task": task, "allocator._target_": target, "train.lr": rate}
                    value = level + (gain if place == 0 else gain / 2) + 0.0003 * (seed % 3)
                    write_run(out, "adalora", seed, rank, config=config, task=task, metric__test=value,
                              metric__best=value + (0.01 if rate == 0.01 else 0))  # fmt: skip
    return out


def test_adaptive_against_the_same_rank_everywhere(tmp_path, write_run):
    (table,) = tables(read_runs(write_arms(tmp_path, write_run, ranks=(2, 8))))
    judged = controls.verdicts(table)
    assert [v.comparison.label for v in judged] == [
        f"adalora {i} → {r}, allocator global_top" for i, r in ((3, 2), (12, 8))
    ]
    assert [v.comparison.against for v in judged] == [
        f"adalora {i} → {r}, allocator uniform" for i, r in ((3, 2), (12, 8))
    ]
    assert [v.difference for v in judged] == pytest.approx([0.015, 0.015])
    assert {v.text for v in judged} == {"adalora, allocator global_top better"}
    (grid,) = [grid for grid in cells.grids(table) if grid.title == controls.TITLE]
    assert len(grid.rows) == 2


def test_without_a_control_there_is_nothing_to_say(quickstart):
    (table,) = tables(read_runs(quickstart))
    assert controls.verdicts(table) == []
    assert set(table.kinds.values()) == {"full", "lora", "adalora"}


def test_a_verdict_on_lora_names_the_kind_that_is_better(tmp_path, write_run):
    (table,) = tables(read_runs(write_arms(tmp_path, write_run)))
    assert {v.text for v in verdicts(table)} == {
        "adalora, allocator global_top better",
        "adalora, allocator uniform better",
    }


def test_each_has_a_search_of_its_own(tmp_path, write_run):
    (table,) = tables(read_runs(write_arms(tmp_path, write_run, seeds=2, rates=(0.005, 0.01))))
    found = {search.name: (sorted(search.tried), len(search.chosen.scores)) for search in searches(table)}
    assert found == {
        "lora 8": ([0.002], 2),
        "adalora 12 → 8, allocator global_top": ([0.005, 0.01], 2),
        "adalora 12 → 8, allocator uniform": ([0.005, 0.01], 2),
    }
    assert [kind_and_ranks(table, row) for row in table.tuned] == list(found)


def test_over_tasks_each_is_compared_with_itself(tmp_path, write_run):
    for task, gain in (("cola", 0.04), ("sst2", 0.02)):
        write_arms(tmp_path, write_run, task, seeds=4, gain=gain)
    (over,) = across(tables(read_runs(tmp_path)))
    found = {v.comparison.label: (v.comparison.against, v.difference, v.text) for v in over.verdicts}
    assert found == {
        "adalora 12 → 8, allocator global_top": ("lora 8", pytest.approx(0.03, abs=1e-3), "adalora, allocator global_top better"),
        "adalora 12 → 8, allocator uniform": ("lora 8", pytest.approx(0.015, abs=1e-3), "adalora, allocator uniform better"),
    }  # fmt: skip
