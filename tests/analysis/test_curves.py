import pytest

from analysis import curves, format_table, report
from analysis.load import read_runs
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
