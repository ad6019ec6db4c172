"""What the cost buys: the metric against parameters, time or memory, and which configurations nothing dominates."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from analysis import formats
from analysis.plots import dots, legend, style
from analysis.plots.labels import place_labels
from analysis.plots.names import broken
from analysis.rows import Row
from analysis.tables import FEW, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BESIDE = 28  # characters in a line of a name beside its point

NAMED = 16  # points that a figure can name directly
LINES = 40  # configurations that a figure can hold


class Cost(NamedTuple):
    """of: a row's cost, None where unknown; label: of the axis; measured: it depends on the device; log: its scale."""

    of: Callable[[Row], float | None]
    label: str
    measured: bool
    log: bool


COSTS = {
    "parameters": Cost(lambda row: row.kept, "parameters kept beyond the frozen base (log scale)", False, True),
    "time": Cost(lambda row: row.step_ms, "time of a training step, ms", True, False),
    "memory": Cost(lambda row: row.peak_mib, "peak memory of training, MiB", True, False),
}


def draw(table: Table, cost: Cost) -> "Figure | None":
    """The tuned rows of `table` (beyond LINES the best on dev of every kind and rank) as points, those of a kind
    joined by a line; named directly, or beyond NAMED by a legend of kinds.

    More than FEW kinds are listed instead, metric and cost side by side.
    The seeds' own values are small dots, and set the frame; an interval that would leave it is not drawn: one from two
    seeds may be wider than any metric. None without costs, and where a measured one comes from more than one device.
    """
    chosen = table.tuned
    if len(chosen) > LINES:
        chosen = table.best(lambda row: (table.kinds[row], row.asked))
    costs = {row: value for row in chosen if (value := cost.of(row))}
    rows = list(costs)
    if not rows or (cost.measured and len(set[str]().union(*(row.devices for row in rows))) > 1):
        return None
    import matplotlib
    from matplotlib.lines import Line2D

    looks = style.looks(table)
    frame = _frame([value for row in rows for value in row.scores.values()])
    best = front([(costs[row], row.mean) for row in rows], table.higher_is_better)
    if len({table.kinds[row] for row in rows}) > FEW:
        figure = dots.side_by_side(table, costs, set(best), frame, cost.label)
        _cost_axis(figure.axes[1], cost)
        return figure
    with matplotlib.rc_context(style.RC):
        figure = style.figure(8.5, 5)
        axes = figure.subplots()
        for row in rows:
            _draw_row(axes, row, costs[row], looks[row], frame)
        for kind in dict.fromkeys(table.kinds[row] for row in rows):
            kin = sorted((costs[row], row.mean, looks[row]["color"]) for row in rows if table.kinds[row] == kind)
            axes.plot(
                [x for x, _, _ in kin], [y for _, y, _ in kin], color=kin[0][2], linewidth=0.9, alpha=0.6, zorder=1
            )
        axes.step(*zip(*best, strict=True), where="post", color="#888888", linewidth=1.2, zorder=0, label="front")
        axes.margins(x=0.18)
        axes.set_ylim(*frame)
        _cost_axis(axes, cost)
        axes.set_xlabel(cost.label)
        axes.set_ylabel(f"{table.metric} on {table.split}, mean and 95% t interval")
        if len(rows) > NAMED:
            looks_of = {table.kinds[row]: looks[row] | {"linestyle": "none"} for row in rows}
            handles = [Line2D([], [], markersize=8, **look) for look in looks_of.values()]
            legend.below(figure, (handles, list(map(style.plain, looks_of))), columns=6)
            return figure
        rows.sort(key=lambda row: -row.mean)
        points = [(costs[row], row.mean) for row in rows]
        colours = [looks[row]["color"] for row in rows]
        names = [broken(table.labels[row], BESIDE) for row in rows]
        place_labels(axes, points, names, colours, size=9 if len(rows) > FEW else None)
    return figure


def _draw_row(axes: "Axes", row: Row, cost: float, look: dict[str, Any], frame: tuple[float, float]) -> None:
    axes.errorbar(
        cost,
        row.mean,
        yerr=row.half_width if style.fits(row, frame) else None,
        **(look | {"linestyle": "none"}),
        markersize=8,
        capsize=4,
        elinewidth=1.2,
    )
    values = list(row.scores.values())
    if len(values) > 1:
        axes.plot([cost] * len(values), values, ".", color=look["color"], alpha=0.5, markersize=6)


def front(points: Sequence[tuple[float, float]], higher_is_better: bool) -> list[tuple[float, float]]:
    """The (cost, metric) points that no other beats in one without losing in the other, cheapest first."""
    sign = 1.0 if higher_is_better else -1.0
    found: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda p: (p[0], -sign * p[1])):
        if not found or sign * point[1] > sign * found[-1][1]:
            found.append(point)
    return found


def _cost_axis(axes: "Axes", cost: Cost) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if cost.log:
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 1000 * low else (1.0,)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: formats.short_count(value)))


def _frame(values: Sequence[float]) -> tuple[float, float]:
    """Limits that hold every seed's value with a third of their spread to spare on both sides."""
    low, high = min(values), max(values)
    spare = max((high - low) / 3, 0.01 * max(abs(low), abs(high)), 1e-3)
    return low - spare, high + spare
