import pytest

from analysis import format_table, rank_maps, rows
from analysis.load import read_runs
from analysis.tables import tables
from tests.analysis.conftest import map_settings


def write_maps(out, write_run, seeds=8, drop=0.0):
    """Adaptive runs, their maps `drop` below them, and two shuffles of each that lie 0.02 and 0.04 below the map."""
    for seed in range(seeds):
        adaptive = write_run(out, "adalora", seed, metric__test=0.8 + 0.001 * seed)
        for arm, shuffle, below in (("none", 0, 0.0), ("all", 0, 0.02), ("all", 1, 0.04)):
            config = map_settings(f"/elsewhere/{adaptive.name}", arm, shuffle)
            value = 0.8 + 0.001 * seed - drop - below
            digest = f"{seed}{shuffle}{'b' if arm == 'none' else 'a'}abcdef"
            write_run(out, "adalora", seed, config=config, digest=digest, metric__test=value)
    return out


def comparisons_of(out):
    (table,) = tables(read_runs(out))
    return table, rank_maps.map_or_dynamics(table)


def test_each_seed_is_a_pair_and_shuffles_are_averaged_within_it(tmp_path, write_run):
    table, compared = comparisons_of(write_maps(tmp_path, write_run, drop=0.01))
    assert [c.label.rpartition(", ")[2] for c in compared] == ["adaptive", "map", "adaptive"]
    assert [c.against for c in compared] == ["its map", "map shuffled", "map shuffled"]
    assert [c.differences.size for c in compared] == [8, 8, 8]
    assert [c.differences.mean() for c in compared] == pytest.approx([0.01, 0.03, 0.04])
    (grid,) = [grid for grid in format_table.further_tables(table) if grid.title.startswith(rank_maps.TITLE)]
    assert len(grid.rows) == 3
    assert "verdict" not in grid.header


def test_every_comparison_leads_to_the_runs_of_its_pairs(tmp_path, write_run):
    out = write_maps(tmp_path, write_run, seeds=2)
    write_run(out, "adalora", 7)  # without a map
    _, compared = comparisons_of(out)

    def runs_of(comparison):
        return [(run.seed, rows.source(run) not in ("", "null")) for run in comparison.runs]

    assert runs_of(compared[0]) == [(0, False), (1, False), (0, True), (1, True)]
    assert runs_of(compared[1]) == [
        (0, True),
        (1, True),
        (0, True),
        (0, True),
        (1, True),
        (1, True),
    ]  # two shuffles a map
    assert len({run.name for run in compared[1].runs}) == 6


def test_a_seed_without_its_map_is_no_pair_and_another_seed_s_map_neither(tmp_path, write_run):
    out = write_maps(tmp_path, write_run, seeds=2)
    write_run(out, "adalora", 5)
    other = map_settings(next(out.glob("adalora-*-s5")), "none")
    write_run(out, "adalora", 6, config=other, digest="feedfeed")
    _, compared = comparisons_of(out)
    assert [c.differences.size for c in compared] == [2, 2, 2]


def test_without_maps_there_is_no_comparison(quickstart):
    (table,) = tables(read_runs(quickstart))
    assert rank_maps.map_or_dynamics(table) == []
