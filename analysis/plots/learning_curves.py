"""Dev metric and training loss over training steps: the mean over the seeds and, for few configurations, each seed."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.load import number
from analysis.plots import style
from analysis.rows import Row
from analysis.tables import Table

FEW_SEEDS = 4  # configurations whose seeds can be told apart


@style.styled
def draw(table: Table, rows: Sequence[Row], metrics: style.Records) -> "style.Figure | None":
    """The figure for `rows`, with thin lines for the seeds of up to FEW_SEEDS of them; None without any record to draw.

    metrics: {run name: the records of its metrics.jsonl}.
    """
    panels = [("dev", table.metric, f"{table.metric} on dev"), ("train", "loss", "training loss")]
    series = {(split, key): [curves(row, metrics, split, key) for row in rows] for split, key, _ in panels}
    if not any(curve for curves_of_rows in series.values() for curve in curves_of_rows):
        return None
    styles = style.styles(table)
    figure = style.figure(10.5, 4.4)
    left, right = figure.subplots(1, 2)
    for axes, (split, key, label) in zip((left, right), panels, strict=True):
        for row, lines in zip(rows, series[split, key], strict=True):
            _draw_row(axes, lines, style.plain(table.labels[row]), styles[row], len(rows) <= FEW_SEEDS)
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
    values: dict[float, list[float]] = defaultdict(list)
    for steps, heights in lines:
        for step, height in zip(steps, heights, strict=True):
            values[step].append(height)
    common = sorted((step, float(np.mean(heights))) for step, heights in values.items() if len(heights) == len(lines))
    return np.array(common).reshape(-1, 2).T


def _draw_row(
    axes: "style.Axes", lines: Sequence[NDArray[np.float64]], label: str, look: Mapping[str, Any], each_seed: bool
) -> None:
    if not lines:
        return
    if each_seed and len(lines) > 1:
        for steps, heights in lines:
            axes.plot(steps, heights, color=look["color"], linestyle=look["linestyle"], linewidth=0.8, alpha=0.45)
    steps, heights = mean_curve(lines)
    axes.plot(steps, heights, **look, linewidth=2.2, markersize=6, markevery=max(1, steps.size // 8), label=label)
