import json

import numpy as np
import pytest
from scipy import stats as reference

from analysis import forgetting, format_table
from analysis.load import read_runs
from analysis.plots import forgetting as plot
from analysis.tables import tables
from tests.analysis.test_weight_change import content as weight_content
from tests.analysis.test_weight_change import put


def test_what_was_forgotten_stands_beside_what_was_learned(quickstart):
    value = {"stsb": {"before": 0.82, "after": 0.7}, "text": {"before": 3.0, "after": 3.25}}
    table, run = put(quickstart, "forgetting.json", value)
    assert [one.lost for one in forgetting.read(run)] == pytest.approx([0.12, 0.25])  # both: worse by so much
    (stsb, text), runs = forgetting.rows(table)
    assert [[run.seed for run in of_row] for of_row in runs] == [[0], [0]]
    assert stsb[1] == text[1] == f"{run.score[1]:.4f}"
    assert stsb[3:] == ["0.8200", "0.7000", "+0.1200", "–"]
    assert text[3:] == ["3.0000", "3.2500", "+0.2500", "–"]
    (grid,) = [grid for grid in format_table.further_tables(table) if grid.header == forgetting.header(table)]
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


def test_who_forgets_is_compared_over_the_seeds_that_both_have(tmp_path, write_quickstart):
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
        "–",
    ]
    (comparison,) = forgetting.against_lora(table)
    assert (comparison.differences.size, len(comparison.runs)) == (8, 16)
    assert comparison.differences.mean() == pytest.approx(np.mean(adalora) - np.mean(lora))
    (folder,) = out.glob("lora-*-s3")
    (folder / "forgetting.json").unlink()
    (comparison,) = forgetting.against_lora(tables(read_runs(out))[0])
    assert comparison.differences.size == 7
    grids = {
        grid.title: dict(zip(grid.header, grid.rows[0], strict=True)) for grid in format_table.further_tables(table)
    }
    assert forgetting.OVER_SEEDS in grids
    (cells,) = [cells for title, cells in grids.items() if title.startswith(forgetting.AGAINST)]
    assert cells["P(better)"].startswith("1.00")  # the lower loss wins


def test_one_measured_run_is_not_over_seeds_and_without_lora_nothing_is_judged(quickstart):
    table = forgot(quickstart, "adalora-*-s0", [0.1])
    assert forgetting.over_seeds(table) == ([], [])
    assert forgetting.against_lora(table) == []


def measured(folder, lost, norm):
    """Give a run a loss at zero-shot STS-B and a norm of ΔW, which one of its modules has alone."""
    (folder / "forgetting.json").write_text(json.dumps({"stsb": {"before": 0.8, "after": 0.8 - lost}}))
    content = weight_content()
    for place, module in enumerate(content["modules"].values()):
        module |= {"norm": 0.0 if place else norm, "base_norm": 1.0}
    (folder / "delta.json").write_text(json.dumps(content))


@pytest.fixture
def grid(tmp_path, write_run):
    """LoRA at three rates, whose norm doubles and whose loss rises by .1 each time; AdaLoRA between the first two."""
    for seed in range(3):
        for place, lr in enumerate((1e-3, 2e-3, 4e-3)):
            folder = write_run(tmp_path, "lora", seed, config={"train.lr": lr}, metric__last=0.8 - 0.01 * place)
            measured(folder, 0.05 + 0.1 * place + 0.01 * seed, 0.01 * 2**place)
        measured(write_run(tmp_path, "adalora", seed), 0.06, 0.01 * 2**0.5 if seed else 0.001)
    (table,) = tables(read_runs(tmp_path))
    return table


def test_lora_forgets_at_the_norm_of_another_method_what_its_rates_say(grid):
    (comparison,) = forgetting.at_equal_norm(grid)
    assert comparison.others == pytest.approx([0.11, 0.12]), "half way between two rates; seed 0 lies below all of them"
    assert comparison.differences == pytest.approx([-0.05, -0.06])
    assert comparison.against == "lora at its norm of ΔW"
    titles = [table.title for table in format_table.further_tables(grid)]
    assert any(title.startswith(forgetting.EQUAL_NORM) for title in titles)
    rows, _ = forgetting.over_seeds(grid)
    assert sorted(row[-1] for row in rows if row[0].startswith("lora")) == ["0.01", "0.02", "0.04"]


def test_every_rate_of_a_method_is_compared_at_its_own_norm(grid, tmp_path, write_run):
    measured(write_run(tmp_path, "adalora", 0, config={"train.lr": 2e-3}), 0.2, 0.02 * 2**0.5)
    (table,) = tables(read_runs(tmp_path))
    found = {c.label: c.differences.tolist() for c in forgetting.at_equal_norm(table)}
    assert sorted(map(len, found.values())) == [1, 2]
    assert [0.0] in [pytest.approx(values) for values in found.values() if len(values) == 1]


def test_the_curve_is_that_of_the_lora_with_the_same_settings(tmp_path, write_run):
    """LoRA at another number of steps and the same rates ended in a traceback."""
    for steps, more in ((100, 0.0), (200, 1.0)):
        for place, lr in enumerate((1e-3, 2e-3)):
            folder = write_run(tmp_path, "lora", 0, config={"train.lr": lr, "train.steps": steps})
            measured(folder, more + 0.1 * place, 0.01 * 2**place)
        folder = write_run(tmp_path, "adalora", 0, config={"train.steps": steps})
        measured(folder, 0.02, 0.01 * 2**0.5)
    (table,) = tables(read_runs(tmp_path))
    found = {c.label: c.others for c in forgetting.at_equal_norm(table)}
    assert sorted(float(each[0]) for each in found.values()) == pytest.approx([0.05, 1.05])


def test_the_figure_joins_the_rates_of_a_method(grid, quickstart):
    lines = {line.get_label(): line for line in plot.draw(grid).axes[0].lines}
    assert lines["lora 8"].get_xdata() == pytest.approx([0.06, 0.16, 0.26])
    assert len(lines) == 2
    (table,) = tables(read_runs(quickstart))
    assert plot.draw(table) is None
