"""Maps of different seeds are one row: what differs between them is only the run that each came from."""

from analysis.load import read_runs
from analysis.maps import is_map
from analysis.tables import tables


def write_map(out, write_run, seed, shuffle_seed, arm="all", **how):
    config = {
        "allocator._target_": "adarank.harness.rank_map.rank_map",
        "allocator.source": f"/elsewhere/adalora-0123456789-s{seed}",
        "allocator.shuffle": arm,
        "allocator.seed": shuffle_seed,
    }
    digest = f"{len(list(out.glob('*'))):010x}"
    return write_run(out, "adalora", seed, config=config, digest=digest, **how)


def mapped(out):
    (table,) = tables(read_runs(out))
    return table, [row for row in table.rows if is_map(row)]


def test_the_seeds_of_a_map_are_one_row_with_an_interval(tmp_path, write_run):
    values = [0.70, 0.72, 0.74]
    for seed, value in enumerate(values):
        write_run(tmp_path, "adalora", seed)
        write_map(tmp_path, write_run, seed, shuffle_seed=seed, metric__test=value)
    table, (row,) = mapped(tmp_path)
    assert row.scores == dict(enumerate(values))
    assert row.half_width is not None
    assert len(table.rows) == 2
    assert "seed" not in table.labels[row]


def test_two_shuffles_of_a_seed_are_two_rows(tmp_path, write_run):
    for seed in range(3):
        write_run(tmp_path, "adalora", seed)
        for shuffle_seed in (0, 1):
            write_map(tmp_path, write_run, seed, shuffle_seed, metric__test=0.7 + 0.1 * shuffle_seed)
    table, rows = mapped(tmp_path)
    assert sorted((row.settings["allocator.seed"], *row.scores) for row in rows) == [("0", 0, 1, 2), ("1", 0, 1, 2)]
    assert len({table.labels[row] for row in table.rows}) == 3


def test_kinds_of_shuffle_stay_apart(tmp_path, write_run):
    for seed in range(2):
        write_run(tmp_path, "adalora", seed)
        for arm in ("none", "all"):
            write_map(tmp_path, write_run, seed, shuffle_seed=seed, arm=arm)
    _, rows = mapped(tmp_path)
    assert sorted(row.settings["allocator.shuffle"] for row in rows) == ["all", "none"]


def test_maps_of_another_budget_stay_apart(tmp_path, write_run):
    for seed in range(2):
        write_run(tmp_path, "adalora", seed)
        for rank in (2, 8):
            write_map(tmp_path, write_run, seed, shuffle_seed=seed, rank__final={"a": rank, "b": rank})
    _, rows = mapped(tmp_path)
    assert sorted((row.triplets, len(row.scores)) for row in rows) == [(4.0, 2), (16.0, 2)]
