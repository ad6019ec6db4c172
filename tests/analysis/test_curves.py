import json

import pytest

from analysis import curves, format_table, report
from analysis.load import FolderError, read_runs
from analysis.tables import searches, tables

RANKS = (1, 2, 4, 8)


def write_budgets(out, write_run, ranks=RANKS, seeds=4, gain=0.01):
    """LoRA gains a point with every doubling, AdaLoRA lies `gain` above it at every rank."""
    for seed in range(seeds):
        for place, rank in enumerate(ranks):
            level = 0.7 + 0.01 * place + 0.001 * seed
            write_run(out, "lora", seed, rank, metric__test=level)
            write_run(out, "adalora", seed, rank, metric__test=level + gain + 0.0005 * (seed % 2))


def test_the_area_over_four_ranks_is_the_mean_over_log_rank(tmp_path, write_run):
    write_budgets(tmp_path, write_run)
    (table,) = tables(read_runs(tmp_path))
    found = curves.curves(table)
    assert {kind: list(rows) for kind, rows in found.items()} == {"lora": [1, 2, 4, 8], "adalora": [1, 2, 4, 8]}
    assert curves.areas(found["lora"]) == pytest.approx({seed: 0.715 + 0.001 * seed for seed in range(4)})
    (comparison,) = curves.against_lora(table)
    assert comparison.differences == pytest.approx([0.01, 0.0105, 0.01, 0.0105])
    titles = [grid.title for grid in format_table.further_tables(table, [])]
    assert curves.TITLE in titles
    assert any(title.startswith(curves.AGAINST) for title in titles)


def test_three_ranks_are_no_curve(tmp_path, write_run):
    write_budgets(tmp_path, write_run, ranks=(2, 4, 8))
    (table,) = tables(read_runs(tmp_path))
    assert curves.curves(table) == {}
    assert curves.against_lora(table) == []


def test_only_seeds_that_every_rank_has_count(tmp_path, write_run):
    write_budgets(tmp_path, write_run)
    write_run(tmp_path, "lora", 9, 8)
    (table,) = tables(read_runs(tmp_path))
    assert set(curves.areas(curves.curves(table)["lora"])) == {0, 1, 2, 3}


def test_a_lucky_seed_at_another_rate_is_no_curve(tmp_path, write_run):
    """One seed at 5e-3 took the place of four at the chosen rate."""
    write_budgets(tmp_path, write_run)
    (table,) = tables(read_runs(tmp_path))
    expected = curves.areas(curves.curves(table)["lora"])
    write_run(tmp_path, "lora", 0, 4, config={"train.lr": 5e-3}, metric__test=0.9, metric__last=0.9)
    (table,) = tables(read_runs(tmp_path))
    assert curves.areas(curves.curves(table)["lora"]) == pytest.approx(expected)


def test_rates_within_a_point_of_the_best(tmp_path, write_run):
    for rate, last in ((1e-4, 0.700), (2e-4, 0.785), (4e-4, 0.79), (8e-4, 0.786), (1.6e-3, 0.6), (3.2e-3, 0.789)):
        write_run(tmp_path, "lora", 0, config={"train.lr": rate}, metric__last=last)
    (table,) = tables(read_runs(tmp_path))
    (search,) = searches(table)
    assert curves.rate_width(search, higher_is_better=True) == (2e-4, 8e-4)  # 3.2e-3 is not beside it
    assert 0.7 < curves.rate_area(search) < 0.78
    (grid,) = [grid for grid in format_table.further_tables(table, []) if grid.title == "Learning-rate trials"]
    cells = dict(zip(grid.header, grid.rows[0], strict=True))
    assert cells["used"] == "0.0004"
    assert cells["within a point of the best"] == "0.0002 to 0.0008 (4×)"


def test_one_rate_has_no_width(quickstart):
    (table,) = tables(read_runs(quickstart))
    assert {curves.rate_width(search, True) for search in searches(table)} == {None}
    assert "Learning-rate trials" not in report.as_text(report.load(quickstart))


TIMES = {
    "models": {"a": {"median_ms": {"lora": 100.0, "adalora": 200.0}}, "b": {"median_ms": {"lora": 10, "adalora": 20}}}
}


def test_at_equal_cost_a_method_of_twice_the_time_is_compared_with_twice_the_rank(tmp_path, write_run):
    """AdaLoRA lies a point above LoRA at every rank, which is what a doubling of the cost is worth."""
    (tmp_path / "times.json").write_text(json.dumps(TIMES))
    times = curves.read_times(tmp_path / "times.json")
    assert times == pytest.approx({"lora": 1.0, "adalora": 2.0})
    for seed in range(4):
        for place, rank in enumerate((1, 2, 4, 8, 16)):
            level = 0.7 + 0.01 * place + 0.001 * seed
            for method, gain in (("lora", 0.0), ("adalora", 0.01 + 0.0005 * (seed % 2))):
                folder = write_run(tmp_path / "runs", method, seed, rank, metric__test=level + gain)
                summary = json.loads((folder / "summary.json").read_text())
                summary["parameters"] |= {"trainable": 1000 * rank, "adapter": 1000 * rank, "kept": 1000 * rank}
                (folder / "summary.json").write_text(json.dumps(summary))
    (table,) = tables(read_runs(tmp_path / "runs"))
    (comparison,) = curves.at_equal_cost(table, times)
    assert comparison.differences == pytest.approx([0.0, 0.0005, 0.0, 0.0005], abs=1e-9)
    assert curves.at_equal_cost(table, {"lora": 1.0}) == []


def test_times_that_are_no_benchmark_are_refused(tmp_path):
    (tmp_path / "times.json").write_text('{"models": []}')
    with pytest.raises(FolderError, match="--times must be a JSON file"):
        curves.read_times(tmp_path / "times.json")


def test_the_report_compares_at_equal_cost_only_with_times(tmp_path, write_run):
    write_budgets(tmp_path / "runs", write_run)
    (tmp_path / "times.json").write_text(json.dumps(TIMES))
    assert curves.COST not in report.as_text(report.load(tmp_path / "runs"), 400)
    assert curves.COST in report.as_text(report.load(tmp_path / "runs", tmp_path / "times.json"), 400)
