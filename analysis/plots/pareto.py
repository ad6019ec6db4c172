"""The metric against parameters, time or memory, and which configurations are on the Pareto front."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from analysis import formats
from analysis.plots import style
from analysis.rows import Row
from analysis.tables import FEW, Table

NAMED = 16  # points that a legend names; if there are more, it names the kinds
POINTS = 40  # the most configurations in a figure
BLUE, GREY = style.COLOURS[0], "#888888"


class Cost(NamedTuple):
    """of: a row's cost, or None if unknown; label: of the axis; measured: whether it depends on the device; log:
    whether the scale is logarithmic."""

    of: Callable[[Row], float | None]
    label: str
    measured: bool
    log: bool


COSTS = {
    "parameters": Cost(lambda row: row.kept, "parameters kept beyond the frozen base (log scale)", False, True),
    "time": Cost(lambda row: row.step_ms, "time per training step, ms", True, False),
    "memory": Cost(lambda row: row.peak_mib, "peak memory of training, MiB", True, False),
}


@style.styled
def draw(table: Table, cost: Cost) -> "style.Figure | None":
    """The tuned rows of `table` (if more than POINTS, the best on dev of every kind and rank) as points, with a line
    joining those of a kind; the legend names each, or beyond NAMED the kinds. More than FEW kinds become a list.

    The seeds' values are small dots and set the frame; an interval that would leave it is not drawn, since one from two
    seeds may be wider than any metric. None without costs, and if a measured cost comes from more than one device.
    """
    chosen = table.tuned
    if len(chosen) > POINTS:
        chosen = table.best(lambda row: (table.kinds[row], row.requested_ranks))
    costs = {row: value for row in chosen if (value := cost.of(row))}
    rows = list(costs)
    if not rows or (cost.measured and len(set[str]().union(*(row.devices for row in rows))) > 1):
        return None
    frame = _frame([value for row in rows for value in row.scores.values()])
    best = front([(costs[row], row.mean) for row in rows], table.higher_is_better)
    kinds = list(dict.fromkeys(table.kinds[row] for row in rows))
    if len(kinds) > FEW:
        return _draw_list(table, costs, cost, set(best), frame)
    by_label = len(rows) <= NAMED
    styles = style.distinct_styles(table, rows) if by_label else style.styles(table)
    figure, axes = style.single(8.5, 4.4)
    names = table.labels if by_label else table.kinds
    for row in rows:
        _draw_row(axes, row, costs[row], styles[row], frame, style.plain(names[row]))
    for kind in kinds:
        points = sorted((costs[row], row.mean, styles[row]["color"]) for row in rows if table.kinds[row] == kind)
        x, y, colours = zip(*points, strict=True)
        axes.plot(x, y, color=colours[0] if len(set(colours)) == 1 else GREY, linewidth=0.9, alpha=0.6, zorder=1)
    axes.step(*zip(*best, strict=True), where="post", color=GREY, linewidth=1.2, zorder=0, label="Pareto front")
    axes.margins(x=0.1)
    axes.set_ylim(*frame)
    _format_cost_axis(axes, cost)
    axes.set(xlabel=cost.label, ylabel=f"{table.metric} on {table.split}, mean and 95% t interval")
    style.legend_below(figure, [axes], columns=3)
    return figure


def front(points: Sequence[tuple[float, float]], higher_is_better: bool) -> list[tuple[float, float]]:
    """The (cost, metric) points on the Pareto front, the cheapest first."""
    sign = 1.0 if higher_is_better else -1.0
    result: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda p: (p[0], -sign * p[1])):
        if not result or sign * point[1] > sign * result[-1][1]:
            result.append(point)
    return result


def _draw_row(
    axes: "style.Axes", row: Row, cost: float, look: Mapping[str, Any], frame: tuple[float, float], label: str
) -> None:
    axes.errorbar(
        cost,
        row.mean,
        yerr=row.half_width if style.fits(row, frame) else None,
        **{**look, "linestyle": "none"},
        markersize=8,
        capsize=4,
        elinewidth=1.2,
        label=label,
    )
    values = list(row.scores.values())
    if len(values) > 1:
        axes.plot([cost] * len(values), values, ".", color=look["color"], alpha=0.5, markersize=6)


def _draw_list(
    table: Table, costs: Mapping[Row, float], cost: Cost, best: set[tuple[float, float]], frame: tuple[float, float]
) -> "style.Figure":
    """One line per row of `costs`, the best on top: the metric on the left, the cost on the right; filled markers are
    on the front. best: the (cost, metric) points of the front; frame: limits of the metric."""
    from matplotlib.lines import Line2D

    order = sorted(costs, key=lambda row: -row.mean if table.higher_is_better else row.mean)
    figure = style.figure(9.5, 1.6 + 0.27 * len(order))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for y, row in enumerate(order):
        marker = _marker((costs[row], row.mean) in best)
        if style.fits(row, frame):
            half_width = row.half_width or 0.0
            left.plot([row.mean - half_width, row.mean + half_width], [y, y], color=BLUE, lw=1.4)
        if len(row.scores) > 1:
            left.plot(list(row.scores.values()), [y] * len(row.scores), "|", color=GREY, markersize=9)
        left.plot(row.mean, y, **marker)
        right.plot(costs[row], y, **marker)
    left.set_xlim(*frame)
    left.set_yticks(range(len(order)), [style.plain(table.labels[row]) for row in order], fontsize=10)
    left.set_ylim(len(order) - 0.4, -0.6)
    left.set_xlabel(f"{table.metric} on {table.split}, mean and 95% t interval", fontsize=10)
    right.set_xlabel(textwrap.fill(cost.label, 34), fontsize=10)
    _format_cost_axis(right, cost)
    handles = [
        Line2D([], [], label="on the Pareto front", **_marker(True)),
        Line2D([], [], label="dominated", **_marker(False)),
        Line2D([], [], linestyle="none", marker="|", color=GREY, markersize=9, label="seed"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _marker(on_front: bool) -> dict[str, Any]:
    fill = BLUE if on_front else "white"
    return {"linestyle": "none", "marker": "o", "markersize": 7.5, "color": BLUE, "markerfacecolor": fill}


def _format_cost_axis(axes: "style.Axes", cost: Cost) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if cost.log:
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 1000 * low else (1.0,)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: formats.short_count(value)))


def _frame(values: Sequence[float]) -> tuple[float, float]:
    """Limits that contain every seed's value, with a third of their spread as margin on both sides."""
    low, high = min(values), max(values)
    spare = max((high - low) / 3, 0.01 * max(abs(low), abs(high)), 1e-3)
    return low - spare, high + spare
