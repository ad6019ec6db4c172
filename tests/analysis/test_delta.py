import json
from statistics import median

import numpy as np
import pytest
from scipy import stats as reference

from analysis import cells, delta, forgetting
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
    found = delta.read(run)
    assert found.top == 10
    assert found.modules[modules()[1]].sigma == (0.8, 0.4, 0.1)
    (row,), ((run,),) = delta.rows(table)
    assert (run.folder / "delta.json").exists()
    assert row[:2] == ["adalora 12 → 8, seed 0", "6"]
    assert row[2:] == ["0.175", "8.5", "4.5", "3.5", "5.5", "22.5", "15 of 60", "0.25", "0.5"]
    assert float(row[2]) == pytest.approx(median(0.5 * (i + 1) / 10 for i in range(6)))
    (grid,) = [grid for grid in cells.grids(table) if grid.header == delta.HEADER]
    assert grid.rows == [row]


def test_full_fine_tuning_has_no_factors_and_an_unmoved_module_no_amplification(quickstart):
    value = content(factors=False)
    for module in value["modules"].values():
        module["amplification"] = None
    table, _ = put(quickstart, "delta.json", value, "full-*-s0")
    (row,), ((run,),) = delta.rows(table)
    assert (run.folder / "delta.json").exists()
    assert row[6:8] == ["–", "–"]
    assert row[9:] == ["–", "–"]


DAMAGED = [None, "{", "[]", "{}", '{"modules": {}, "top": 10}', '{"modules": {"a": {"rank": 1}}, "top": 10}']


@pytest.mark.parametrize("text", DAMAGED)
def test_without_a_file_to_read_there_is_no_line(quickstart, text):
    table, run = put(quickstart, "delta.json", text or "")
    if text is None:
        (run.folder / "delta.json").unlink()
    assert delta.read(run) is None
    assert delta.rows(table) == ([], [])


def test_what_was_forgotten_stands_beside_what_was_learned(quickstart):
    value = {"stsb": {"before": 0.82, "after": 0.7}, "text": {"before": 3.0, "after": 3.25}}
    table, run = put(quickstart, "forgetting.json", value)
    assert [one.lost for one in forgetting.read(run)] == pytest.approx([0.12, 0.25])  # both: worse by so much
    (stsb, text), runs = forgetting.rows(table)
    assert [[run.seed for run in of_row] for of_row in runs] == [[0], [0]]
    assert stsb[1] == text[1] == f"{run.score[1]:.4f}"
    assert stsb[3:] == ["0.8200", "0.7000", "+0.1200"]
    assert text[3:] == ["3.0000", "3.2500", "+0.2500"]
    (grid,) = [grid for grid in cells.grids(table) if grid.header == forgetting.header(table)]
    assert len(grid.rows) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", '{"stsb": {"before": 1}}', '{"stsb": {"before": 1, "after": null}}'])
def test_half_a_measurement_is_none(quickstart, text):
    table, run = put(quickstart, "forgetting.json", text)
    assert forgetting.read(run) == []
    assert forgetting.rows(table) == ([], [])


def forgot(out, pattern, lost):
    """Give every run that matches, in seed order, a loss of `lost` at zero-shot STS-B; the table they stand in."""
    for folder, value in zip(sorted(out.glob(pattern)), lost, strict=True):
        (folder / "forgetting.json").write_text(json.dumps({"stsb": {"before": 0.8, "after": 0.8 - value}}))
    (table,) = tables(read_runs(out))
    return table


def test_who_forgets_is_judged_over_the_seeds_that_both_have(tmp_path, write_quickstart):
    lora, adalora = [0.10 + 0.01 * s for s in range(8)], [0.02 + 0.002 * s for s in range(8)]
    out = write_quickstart(tmp_path, seeds=8)
    forgot(out, "lora-*", lora)
    table = forgot(out, "adalora-*", adalora)
    rows, runs = forgetting.over_seeds(table)
    assert [row[0] for row in rows] == ["lora 8", "adalora 12 → 8"], "full was not measured"
    assert [len(of_row) for of_row in runs] == [8, 8]
    half = reference.t.ppf(0.975, 7) * np.std(adalora, ddof=1) / np.sqrt(8)
    assert rows[1][3:] == [
        "0.8000 ± 0.0000",
        f"{0.8 - np.mean(adalora):.4f} ± {half:.4f}",
        f"{np.mean(adalora):.4f} ± {half:.4f}",
    ]
    (verdict,) = forgetting.verdicts(table)
    assert (verdict.text, verdict.pairs, len(verdict.comparison.runs)) == ("adalora better", 8, 16)
    assert verdict.difference == pytest.approx(np.mean(adalora) - np.mean(lora))
    (folder,) = out.glob("lora-*-s3")
    (folder / "forgetting.json").unlink()
    (verdict,) = forgetting.verdicts(tables(read_runs(out))[0])
    assert verdict.pairs == 7
    titles = [grid.title for grid in cells.grids(table)]
    assert {forgetting.OVER_SEEDS, forgetting.AGAINST} <= set(titles)


def test_one_measured_run_is_not_over_seeds_and_without_lora_nothing_is_judged(quickstart):
    table = forgot(quickstart, "adalora-*-s0", [0.1])
    assert forgetting.over_seeds(table) == ([], [])
    assert forgetting.verdicts(table) == []
