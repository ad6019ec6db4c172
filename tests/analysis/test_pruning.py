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


def test_the_cost_is_the_loss_above_the_unpruned_model_the_oracle_and_a_random_order(tmp_path, write_run):
    table = table_of(tmp_path, write_run, [content()])
    found = pruning.costs(pruning.read(table.rows[0].runs[0]))
    assert len(found) == 3 * 2 * 2, "every order, size and moment, without the unpruned model itself"
    assert found[25, 0, "taylor"][:3] == pytest.approx((0.15, 0.10, -0.10))
    assert found[25, 20, "taylor"][:3] == pytest.approx((0.03, 0.01, -0.01))
    assert found[50, 0, "taylor"].regret == pytest.approx(-0.01), "an oracle on other rows can be beaten"
    assert found[25, 20, "oracle"][1] == found[25, 20, "random"][2] == 0.0
    assert found[50, 0, "random"].metric == pytest.approx(0.8 - 0.061)


def test_every_run_counts_once_with_its_t_interval(tmp_path, write_run):
    table = table_of(tmp_path, write_run, [content(seed) for seed in range(4)])
    lines, runs = pruning.rows(table)
    usual = ["oracle", "taylor", "random"]
    ordered = {
        ("50", "0"): ["taylor", "oracle", "random"],
        ("50", "20"): usual,
        ("25", "0"): usual,
        ("25", "20"): usual,
    }
    assert [line[1:4] for line in lines] == [
        [*state, order] for state, orders in ordered.items() for order in orders
    ], "the largest size first, and the cheapest order"
    before, after = lines[-4], lines[-1]
    values = 0.20 + 0.02 * np.arange(4)
    half = reference.t.ppf(0.975, 3) * values.std(ddof=1) / 2
    assert before[5] == formats.interval(values.mean(), half)
    assert before[6] == formats.interval(0.0, 0.0)
    assert after[5] == formats.interval(0.02, 0.0)
    assert (after[-1], len(runs[-1])) == ("4", 4)
    (grid,) = [grid for grid in format_table.further_tables(table) if grid.title == pruning.TITLE]
    assert grid.header == pruning.HEADER
    assert {len(line) for line in grid.rows} == {len(pruning.HEADER)}


def test_a_retraining_that_diverged_is_missing_and_not_counted(tmp_path, write_run):
    diverged = content(1)
    (state,) = [each for each in diverged["states"] if (each["order"], each["triplets"]) == ("taylor", 25)]
    state["loss_after"] = state["metric_after"] = None
    lines, _ = pruning.rows(table_of(tmp_path, write_run, [content(), diverged]))
    (line,) = [line for line in lines if line[1:4] == ["25", "20", "taylor"]]
    assert line[4:6] == [formats.interval(0.03, None), formats.interval(0.01, None)]
    assert line[-1] == "1"
    assert {line[-1] for line in lines if line[1:4] != ["25", "20", "taylor"]} == {"2"}
    diverged["states"] = [
        {**each, "loss_after": None} if each["order"] == "oracle" else each for each in content()["states"]
    ]
    lines, _ = pruning.rows(table_of(tmp_path / "oracle", write_run, [content(), diverged]))
    assert {line[-1] for line in lines if line[2:4] == ["20", "random"]} == {"1 to 2"}, "one regret is missing"


def test_without_retraining_there_is_one_panel_and_one_moment(tmp_path, write_run):
    table = table_of(tmp_path, write_run, [content(steps=0), content(1, steps=0)])
    lines, _ = pruning.rows(table)
    assert {line[2] for line in lines} == {"0"}
    (axes,) = plot.draw(table).axes
    labels = {line.get_label(): line for line in axes.lines}
    assert list(labels["random"].get_xdata()) == [25, 50]
    assert labels["random"].get_ydata() == pytest.approx([0.265, 0.125])
    assert {"oracle", "taylor"} < labels.keys()


def test_the_figure_shows_the_cost_before_and_after_retraining(tmp_path, write_run):
    figure = plot.draw(table_of(tmp_path, write_run, [content()]))
    assert [axes.get_title() for axes in figure.axes] == ["right after pruning", "after 20 steps of retraining"]
    after = {line.get_label(): line.get_ydata() for line in figure.axes[1].lines}
    assert after["taylor"] == pytest.approx([0.03, 0.01])


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
