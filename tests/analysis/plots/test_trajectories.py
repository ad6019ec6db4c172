import numpy as np

from adarank.runs.files import read_lines
from analysis.load import read_runs
from analysis.plots import trajectories
from analysis.tables import tables


def found(out):
    (table,) = tables(read_runs(out))
    row = table.rows[2]
    return table, row, {run.name: read_lines(run.folder / "allocations.jsonl")[0] for run in row.runs}


def test_every_module_s_path_from_creation_to_the_end(quickstart):
    table, row, allocations = found(quickstart)
    edges, ranks = trajectories.path_of(row, allocations)
    records = allocations[row.runs[0].name]
    assert list(edges) == [0, *(record["step"] + 1 for record in records), 102]
    assert ranks.shape == (36, 11)
    assert set(ranks[:, 0]) == {12.0}
    for place, module in enumerate(row.ranks):
        assert ranks[place, -1] == records[-1]["ranks"][module]
    figure = trajectories.draw(table, [row], allocations)
    axes = figure.axes[0]
    kinds = [tick.get_text() for tick in axes.get_yticklabels()]
    assert len(kinds) == 6
    order, _ = trajectories.by_kind(list(row.ranks))
    np.testing.assert_array_equal(axes.collections[0].get_array(), ranks[order])
    assert axes.get_title() == "adalora 12 → 8"


def test_modules_are_grouped_by_kind():
    order, kinds = trajectories.by_kind(["l.0.q", "l.0.v", "l.1.q", "l.1.v"])
    assert order == [0, 2, 1, 3]
    assert kinds == {"q": (0, 2), "v": (2, 4)}


def test_the_kinds_of_encoder_and_decoder_stay_apart():
    modules = [f"{stack}.{block}.fc1" for stack in ("encoder", "decoder") for block in (0, 1)]
    order, kinds = trajectories.by_kind(modules)
    assert order == [0, 1, 2, 3]
    assert kinds == {"encoder fc1": (0, 2), "decoder fc1": (2, 4)}


def test_nothing_without_records(quickstart):
    table, row, _ = found(quickstart)
    assert trajectories.draw(table, [row], {}) is None
