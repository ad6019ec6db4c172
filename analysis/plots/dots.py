"""Metric and cost side by side, a line for every configuration: for more methods than points can be told apart by."""

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from analysis.plots import style
from analysis.rows import Row
from analysis.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, GREY = style.COLOURS[0], "#888888"


def side_by_side(
    table: Table, costs: Mapping[Row, float], front: set[tuple[float, float]], frame: tuple[float, float], label: str
) -> "Figure":
    """The rows of `costs`, the best on top: left the metric, right the cost; filled marks are on the front.

    front: the (cost, metric) points that nothing beats; frame: limits of the metric; label: of the cost.
    """
    import matplotlib

    order = sorted(costs, key=lambda row: -row.mean if table.higher_is_better else row.mean)
    with matplotlib.rc_context(style.RC):
        figure = style.figure(9.5, 1.6 + 0.27 * len(order))
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        for y, row in enumerate(order):
            on_front = (costs[row], row.mean) in front
            _draw_scores(left, y, row, frame, on_front)
            right.plot(costs[row], y, **_mark(on_front))
        left.set_xlim(*frame)
        left.set_yticks(range(len(order)), [style.plain(table.labels[row]) for row in order], fontsize=10)
        left.set_ylim(len(order) - 0.4, -0.6)
        left.set_xlabel(f"{table.metric} on {table.split}, mean and 95% t interval", fontsize=10)
        right.set_xlabel(textwrap.fill(label, 34), fontsize=10)
        _legend(figure)
    return figure


def _draw_scores(axes: "Axes", y: int, row: Row, frame: tuple[float, float], on_front: bool) -> None:
    if style.fits(row, frame):
        axes.plot([row.mean - (row.half_width or 0.0), row.mean + (row.half_width or 0.0)], [y, y], color=BLUE, lw=1.4)
    if len(row.scores) > 1:
        axes.plot(list(row.scores.values()), [y] * len(row.scores), "|", color=GREY, markersize=9)
    axes.plot(row.mean, y, **_mark(on_front))


def _mark(on_front: bool) -> dict[str, Any]:
    return {
        "linestyle": "none",
        "marker": "o",
        "markersize": 7.5,
        "color": BLUE,
        "markerfacecolor": BLUE if on_front else "white",
    }


def _legend(figure: "Figure") -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], label="on the front", **_mark(True)),
        Line2D([], [], label="beaten at its cost", **_mark(False)),
        Line2D([], [], linestyle="none", marker="|", color=GREY, markersize=9, label="a seed"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
