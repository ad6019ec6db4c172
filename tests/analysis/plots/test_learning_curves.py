import numpy as np
import pytest
from scipy.stats import t

from adarank.runs.files import read_lines
from analysis.load import read_runs
from analysis.plots import learning_curves
from analysis.tables import tables


def drawn(out):
    (table,) = tables(read_runs(out))
    metrics = {run.name: read_lines(run.folder / "metrics.jsonl")[0] for row in table.rows for run in row.runs}
    return table, metrics, learning_curves.draw(table, table.rows, metrics)


def test_a_panel_for_dev_and_one_for_the_loss(quickstart):
    _, _, figure = drawn(quickstart)
    dev, loss = figure.axes
    assert (dev.get_ylabel(), loss.get_ylabel()) == ("accuracy on dev", "training loss")
    assert dev.get_xlabel() == loss.get_xlabel() == "optimiser step"
    assert [entry.get_text() for entry in figure.legends[0].get_texts()] == ["full", "lora 8", "adalora 12 → 8"]


def test_lines_are_means_and_bands_the_range_of_two_seeds(quickstart):
    table, metrics, figure = drawn(quickstart)
    dev = figure.axes[0]
    assert len(dev.get_lines()) == len(dev.collections) == 3
    seeds = [
        {record["step"]: record["accuracy"] for record in metrics[run.name] if record["split"] == "dev"}
        for run in table.rows[1].runs
    ]
    (mean,) = [line for line in dev.get_lines() if line.get_label() == "lora 8"]
    assert list(mean.get_xdata()) == [20, 40, 50, 60, 80, 100]
    assert list(mean.get_ydata()) == pytest.approx([np.mean([seed[step] for seed in seeds]) for step in seeds[0]])
    corners = dev.collections[1].get_paths()[0].vertices[:, 1]
    assert {*seeds[0].values(), *seeds[1].values()} <= set(corners)


def test_of_three_seeds_on_the_band_is_the_t_interval_of_the_mean():
    values = np.array([[0.1, 0.5], [0.2, 0.6], [0.6, 0.7]])
    steps, low, high = learning_curves.band([np.array([[10.0, 20.0], seed]) for seed in values])
    assert steps.tolist() == [10, 20]
    for i in range(2):
        expected = t.interval(0.95, 2, values[:, i].mean(), values[:, i].std(ddof=1) / 3**0.5)
        assert (low[i], high[i]) == pytest.approx(expected)


def test_without_common_steps_there_is_no_band():
    lines = [np.array([[1.0], [0.5]]), np.array([[2.0], [0.5]])]
    assert learning_curves.band(lines).shape == (3, 0)
    assert learning_curves.band([*lines, lines[0]]).shape == (3, 0)
    assert learning_curves.mean_curve(lines).shape == (2, 0)


def test_methods_differ_in_colour_line_and_marker(quickstart):
    _, _, figure = drawn(quickstart)
    means = [line for line in figure.axes[0].get_lines() if not line.get_label().startswith("_")]
    for look in ("get_color", "get_linestyle", "get_marker"):
        assert len({getattr(line, look)() for line in means}) == 3


def test_the_mean_is_taken_where_every_seed_has_a_value():
    lines = [np.array([[1, 2, 3], [0.0, 2.0, 4.0]]), np.array([[2, 3, 4], [4.0, 6.0, 8.0]])]
    assert learning_curves.mean_curve(lines).tolist() == [[2, 3], [3, 5]]


def test_a_step_written_twice_keeps_the_later_value_and_junk_is_skipped(quickstart):
    row = tables(read_runs(quickstart))[0].rows[0]
    first = row.runs[0].name
    records = [
        {"step": 2, "split": "dev", "accuracy": 0.5},
        {"step": 1, "split": "dev", "accuracy": 0.1},
        {"step": 2, "split": "dev", "accuracy": 0.7},
        {"step": 3, "split": "dev", "accuracy": None},
        {"step": None, "split": "dev", "accuracy": 0.9},
        {"step": 4, "split": "train", "accuracy": 0.9},
    ]
    (curve,) = learning_curves.curves(row, {first: records}, "dev", "accuracy")
    assert curve.tolist() == [[1, 2], [0.1, 0.7]]


def test_without_records_there_is_no_figure_and_an_empty_panel_says_so(quickstart):
    table, metrics, _ = drawn(quickstart)
    assert learning_curves.draw(table, table.rows, {}) is None
    training = {run: [record for record in records if record["split"] == "train"] for run, records in metrics.items()}
    dev = learning_curves.draw(table, table.rows, training).axes[0]
    assert [text.get_text() for text in dev.texts] == ["no values recorded"]
