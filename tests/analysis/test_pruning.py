"""Regret of pruning by each score, from pruning.json."""

import json

import numpy as np
import pytest
from scipy import stats as reference

from analysis import fairness, format_table, formats, pruning, report
from analysis.load import read_runs
from analysis.plots import pruning as plot
from analysis.tables import tables

LOSSES = {  # {order: [(triplets kept, loss, loss after retraining)]} of seed 0
    "unpruned": [(100, 0.50, 0.45)],
    "oracle": [(50, 0.51, 0.46), (25, 0.55, 0.47)],
    "taylor": [(50, 0.50, 0.46), (25, 0.65, 0.48)],
    "random": [(50, 0.61, 0.47), (25, 0.75, 0.49)],
}


def content(seed=0, losses=LOSSES, steps=20):
    """Every pruned loss rises by .01 a seed, random's by .03."""
    states = [
        {
            "order": order,
            "triplets": kept,
            "kept": list(range(kept)),
            "loss": loss + seed * {"unpruned": 0.0, "random": 0.03}.get(order, 0.01),
            "metric": 0.8 - loss / 10,
            "loss_after": after if steps else None,
            "metric_after": 0.9 - loss / 10 if steps else None,
        }
        for order, of_order in losses.items()
        for kept, loss, after in of_order
    ]
    return {"split": "dev", "seen": 250, "rows": 250, "metric": "accuracy", "steps": steps, "triplets": 100,
            "modules": {}, "states": states}  # fmt: skip


def table_of(out, write_run, contents):
    for seed, value in enumerate(contents):
        (write_run(out, "svd_lora", seed, 2) / "pruning.json").write_text(json.dumps(value))
    (table,) = tables(read_runs(out))
    return table


def test_regret_is_the_loss_above_the_oracle_s_at_the_same_size(tmp_path, write_run):
    table = table_of(tmp_path, write_run, [content()])
    found = pruning.regrets(pruning.read(table.rows[0].runs[0]))
    assert ("unpruned", 100) not in found
    assert found["taylor", 25].now == pytest.approx(0.10)
    assert found["taylor", 25].after == pytest.approx(0.01)
    assert found["taylor", 50].now == pytest.approx(-0.01), "an oracle on other rows can be beaten"
    assert found["random", 25].above == pytest.approx(0.25)
    assert found["oracle", 25][1:3] == (0.0, 0.0)


def test_every_run_counts_once_with_its_t_interval(tmp_path, write_run):
    table = table_of(tmp_path, write_run, [content(seed) for seed in range(4)])
    lines, runs = pruning.rows(table)
    assert [line[1:3] for line in lines] == [
        [order, kept]
        for kept, orders in (("50", ["taylor", "oracle", "random"]), ("25", ["oracle", "taylor", "random"]))
        for order in orders
    ]
    line = lines[-1]
    values = 0.20 + 0.02 * np.arange(4)
    half = reference.t.ppf(0.975, 3) * values.std(ddof=1) / 2
    assert line[4] == formats.interval(values.mean(), half)
    assert line[5:7] == ["20", formats.interval(0.02, 0.0)]
    assert (line[-1], len(runs[-1])) == ("4", 4)
    (grid,) = [grid for grid in format_table.further_tables(table) if grid.title == pruning.TITLE]
    assert grid.header == pruning.HEADER
    assert {len(line) for line in grid.rows} == {len(pruning.HEADER)}


def test_without_retraining_there_is_one_panel_and_no_second_regret(tmp_path, write_run):
    table = table_of(tmp_path, write_run, [content(steps=0), content(1, steps=0)])
    lines, _ = pruning.rows(table)
    assert {(line[5], line[6], line[8]) for line in lines} == {("0", formats.BLANK, formats.BLANK)}
    (axes,) = plot.draw(table).axes
    labels = {line.get_label(): line for line in axes.lines}
    assert list(labels["random"].get_xdata()) == [25, 50]
    assert labels["random"].get_ydata() == pytest.approx([0.21, 0.11])
    assert "oracle" not in labels, "its regret is zero"


def test_the_figure_shows_regret_before_and_after_retraining(tmp_path, write_run):
    figure = plot.draw(table_of(tmp_path, write_run, [content()]))
    assert [axes.get_title() for axes in figure.axes] == ["right after pruning", "after retraining"]
    after = {line.get_label(): line.get_ydata() for line in figure.axes[1].lines}
    assert after["taylor"] == pytest.approx([0.01, 0.0])


@pytest.mark.usefixtures("no_pictures")
def test_the_report_shows_it_and_names_a_damaged_file(tmp_path, write_run):
    broken = content()
    broken["states"] = broken["states"][1:]
    table = table_of(tmp_path, write_run, [content(), broken])
    assert pruning.read(table.rows[0].runs[1]) is None
    assert [note for note in fairness.notes(table) if note.startswith("pruning.json of svd_lora")]
    assert pruning.TITLE in report.write_report(tmp_path, report.load(tmp_path)).read_text()


def test_nothing_measured_nothing_shown(quickstart):
    (table,) = tables(read_runs(quickstart))
    assert pruning.rows(table) == ([], [])
    assert plot.draw(table) is None
