"""The scores at the last recorded allocation: their spread within every module."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.load import number
from analysis.plots import style
from analysis.plots.trajectories import by_kind
from analysis.rows import Row
from analysis.tables import Table


@style.styled
def draw(table: Table, rows: Sequence[Row], allocations: style.Records) -> "style.Figure | None":
    """One panel per configuration: the last recorded scores of its first seed. Thin: smallest to largest score of a
    module; thick: the middle half; dot: the median. None without any score."""
    quantiles = {row: values for row in rows if (values := last_quantiles(row, allocations)) is not None}
    if not quantiles:
        return None
    figure, panels = style.panels(len(quantiles), 4.6, 3.4)
    for axes, (row, values) in zip(panels, quantiles.items(), strict=True):
        order, kinds = by_kind(list(row.ranks))
        _draw_kinds(axes, values[order], kinds)
        axes.set_title(style.wrapped(table.labels[row]), fontsize=10)
        axes.set_xlabel("module: by kind, then block", fontsize=9)
        axes.set_ylabel("score", fontsize=9)
    style.legend_below(figure, panels, columns=3, fontsize=9)
    return figure


def last_quantiles(row: Row, allocations: style.Records) -> NDArray[np.float64] | None:
    """Quantiles (0, 25, 50, 75, 100%) of the last recorded scores [modules, 5], NaN if a module has none."""
    for run in row.runs:
        for record in reversed(allocations.get(run.name, ())):
            scores: Any = record.get("score_quantiles")
            if isinstance(scores, dict):
                missing = [None] * 5
                lines = [[number(v) for v in scores.get(module, missing)] for module in row.ranks]
                values = np.array(lines, dtype=np.float64)
                return values if np.isfinite(values).any() else None
    return None


def _draw_kinds(axes: "style.Axes", quantiles: NDArray[np.float64], kinds: Mapping[str, tuple[int, int]]) -> None:
    positive = quantiles[quantiles > 0]
    spread = positive.size and not (quantiles < 0).any() and positive.max() > 30 * positive.min()
    if spread:  # a log scale with zeros at its lower end
        quantiles = np.where(quantiles == 0, positive.min(), quantiles)
        axes.set_yscale("log")
    for i, (kind, (begin, end)) in enumerate(kinds.items()):
        x, values, look = np.arange(begin, end), quantiles[begin:end], style.style(i) | {"linestyle": "none"}
        axes.vlines(x, values[:, 0], values[:, 4], color=look["color"], linewidth=0.8)
        axes.vlines(x, values[:, 1], values[:, 3], color=look["color"], linewidth=3.2)
        axes.plot(x, values[:, 2], **look, markerfacecolor="white", markersize=6, label=style.plain(kind))
    axes.set_xticks([])
