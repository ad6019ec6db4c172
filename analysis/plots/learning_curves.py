"""Dev metric and training loss over training steps: the mean over seeds, and its uncertainty."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis import stats
from analysis.load import number
from analysis.plots import style
from analysis.rows import Row
from analysis.tables import Table

FEWEST = 3  # seeds for an interval; for two, the band is their range


@style.styled
def draw(table: Table, rows: Sequence[Row], metrics: style.Records) -> "style.Figure | None":
    """The figure for `rows`; None without any record to draw. metrics: {run name: the records of its metrics.jsonl}."""
    panels = [("dev", table.metric, f"{table.metric} on dev"), ("train", "loss", "training loss")]
    series = {(split, key): [curves(row, metrics, split, key) for row in rows] for split, key, _ in panels}
    if not any(curve for curves_of_rows in series.values() for curve in curves_of_rows):
        return None
    styles = style.styles(table)
    figure = style.figure(10.5, 4.4)
    left, right = figure.subplots(1, 2)
    for axes, (split, key, label) in zip((left, right), panels, strict=True):
        for row, lines in zip(rows, series[split, key], strict=True):
            _draw_row(axes, lines, style.plain(table.labels[row]), styles[row])
        if not axes.has_data():
            axes.text(0.5, 0.5, "no values recorded", transform=axes.transAxes, ha="center")
            axes.set(xticks=[], yticks=[])
        axes.set(xlabel="optimiser step", ylabel=label)
    style.legend_below(figure, [left, right], columns=3, handlelength=3.5)
    return figure


def curves(row: Row, metrics: style.Records, split: str, key: str) -> list[NDArray[np.float64]]:
    """Steps and values of `key` on `split`, [2, points] per seed; a step written twice keeps its last value."""
    result = []
    for run in row.runs:
        values = {}
        for record in metrics.get(run.name, ()):
            step, value = number(record.get("step")), number(record.get(key))
            if record.get("split") == split and step is not None and value is not None:
                values[step] = value
        if values:
            result.append(np.array(sorted(values.items())).T)
    return result


def mean_curve(lines: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The mean [2, points] over the seeds, at the steps that every seed has."""
    steps, values = _common(lines)
    return np.array([steps, values.mean(axis=1)]) if steps.size else np.empty((2, 0))


def band(lines: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Steps, lower and upper ends [3, points]: the 95% t interval of the mean, or the range of fewer than FEWEST."""
    steps, values = _common(lines)
    if len(lines) < FEWEST:
        return np.array([steps, values.min(axis=1, initial=np.inf), values.max(axis=1, initial=-np.inf)])
    middle = [stats.mean_interval(seeds) for seeds in values]
    ends = [(center - (half or 0.0), center + (half or 0.0)) for center, half in middle]
    return np.array([steps, *np.array(ends).reshape(-1, 2).T])


def _common(lines: Sequence[NDArray[np.float64]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The steps [points] that every seed has, and the values there [points, seeds]."""
    values: dict[float, list[float]] = defaultdict(list)
    for steps, heights in lines:
        for step, height in zip(steps, heights, strict=True):
            values[step].append(height)
    common = sorted((step, heights) for step, heights in values.items() if len(heights) == len(lines))
    return (
        np.array([step for step, _ in common], dtype=np.float64),
        np.array([heights for _, heights in common], dtype=np.float64).reshape(-1, len(lines)),
    )


def _draw_row(axes: "style.Axes", lines: Sequence[NDArray[np.float64]], label: str, look: Mapping[str, Any]) -> None:
    if not lines:
        return
    if len(lines) > 1:
        axes.fill_between(*band(lines), color=look["color"], alpha=0.15, linewidth=0)
    steps, heights = mean_curve(lines)
    axes.plot(steps, heights, **look, linewidth=2.2, markersize=6, markevery=max(1, steps.size // 8), label=label)
