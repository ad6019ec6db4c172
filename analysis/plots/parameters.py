"""What the parameters buy: the metric against the parameters kept."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from analysis import formats
from analysis.plots import style
from analysis.plots.labels import place_labels
from analysis.tables import Row, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(table: Table) -> "Figure | None":
    """All rows of `table`, bars where there is an interval; `table.shown` are named directly. None without counts.

    The seeds' own values are small dots, and set the frame: an interval from two seeds may be wider than any metric.
    """
    rows = [row for row in table.rows if row.kept]
    if not rows:
        return None
    import matplotlib
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    looks = style.looks(table)
    with matplotlib.rc_context(style.RC):
        figure = style.figure(8.5, 5)
        axes = figure.subplots()
        for row in rows:
            axes.errorbar(
                row.kept or 0.0,
                row.mean,
                yerr=row.half_width,
                **(looks[row] | {"linestyle": "none"}),
                markersize=8,
                capsize=4,
                elinewidth=1.2,
            )
            values = list(row.scores.values())
            axes.plot([row.kept or 0.0] * len(values), values, ".", color=looks[row]["color"], alpha=0.5, markersize=6)
        axes.set_xscale("log")
        axes.margins(x=0.18)
        axes.set_ylim(*_frame([value for row in rows for value in row.scores.values()]))
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: formats.short_count(value)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("parameters kept beyond the frozen base (log scale)")
        axes.set_ylabel(f"{table.metric} on {table.split}, mean and 95% t interval")
        named = [row for row in rows if row in table.shown]
        if len(named) < len(rows):
            _method_legend(figure, rows, looks)
        named.sort(key=lambda row: -row.mean)
        points = [(row.kept or 0.0, row.mean) for row in named]
        colours = [looks[row]["color"] for row in named]
        place_labels(axes, points, [style.plain(table.labels[row]) for row in named], colours)
    return figure


def _frame(values: Sequence[float]) -> tuple[float, float]:
    """Limits that hold every seed's value with a third of their spread to spare on both sides."""
    low, high = min(values), max(values)
    spare = max((high - low) / 3, 0.01 * max(abs(low), abs(high)), 1e-3)
    return low - spare, high + spare


def _method_legend(figure: "Figure", rows: Sequence[Row], looks: Mapping[Row, dict[str, Any]]) -> None:
    from matplotlib.lines import Line2D

    methods = {row.method: looks[row] | {"linestyle": "none"} for row in rows}
    handles = [Line2D([], [], markersize=8, label=style.plain(method), **look) for method, look in methods.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=6)
