import json
from statistics import median

import pytest

from analysis import format_table, weight_change
from analysis.load import read_runs
from analysis.tables import tables
from tests.analysis.conftest import modules


def content(kept=0, factors=True):
    """A delta.json of six modules, the figures of module i being multiples of i + 1."""
    figures = {
        name: {
            "sides": [384, 384],
            "rank": 8 - kept + (i % 2),
            "norm": 0.5 * (i + 1),
            "base_norm": 10.0,
            "singular_values": [0.4 * (i + 1), 0.2 * (i + 1), 0.1],
            "effective_rank": 2.0 + i,
            "stable_rank": 1.0 + i,
            "amplification": {"directions": 8, "factor": 3.0 + i, "random": 20.0 + i},
            "intruders": i,
            "orthogonality": {"P": 0.1 * i, "Q": 0.2 * i} if factors else None,
        }
        for i, name in enumerate(modules()[:6])
    }
    return {"directions": 8, "top": 10, "epsilon": 0.5, "modules": figures}


def put(quickstart, name, value, pattern="adalora-*-s0"):
    folder = next(quickstart.glob(pattern))
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))
    (table,) = tables(read_runs(quickstart))
    return table, next(run for row in table.rows for run in row.runs if run.folder == folder)


def test_a_line_a_run_with_medians_over_its_modules(quickstart):
    table, run = put(quickstart, "delta.json", content())
    found = weight_change.read(run)
    assert found.top == 10
    assert found.modules[modules()[1]].sigma == (0.8, 0.4, 0.1)
    (row,), ((run,),) = weight_change.rows(table)
    assert (run.folder / "delta.json").exists()
    assert row[:2] == ["adalora 12 → 8, seed 0", "6"]
    assert row[2:] == ["0.175", "8.5", "4.5", "3.5", "5.5", "22.5", "15 of 60", "0.25", "0.5"]
    assert float(row[2]) == pytest.approx(median(0.5 * (i + 1) / 10 for i in range(6)))
    (grid,) = [grid for grid in format_table.further_tables(table) if grid.header == weight_change.HEADER]
    assert grid.rows == [row]


def test_full_fine_tuning_has_no_factors_and_an_unmoved_module_no_amplification(quickstart):
    value = content(factors=False)
    for module in value["modules"].values():
        module["amplification"] = None
    table, _ = put(quickstart, "delta.json", value, "full-*-s0")
    (row,), ((run,),) = weight_change.rows(table)
    assert (run.folder / "delta.json").exists()
    assert row[6:8] == ["–", "–"]
    assert row[9:] == ["–", "–"]


DAMAGED = [None, "{", "[]", "{}", '{"modules": {}, "top": 10}', '{"modules": {"a": {"rank": 1}}, "top": 10}']


@pytest.mark.parametrize("text", DAMAGED)
def test_without_a_file_to_read_there_is_no_line(quickstart, text):
    table, run = put(quickstart, "delta.json", text or "")
    if text is None:
        (run.folder / "delta.json").unlink()
    assert weight_change.read(run) is None
    assert weight_change.rows(table) == ([], [])
