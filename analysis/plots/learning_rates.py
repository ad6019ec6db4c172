"""How each method responds to its learning rate: the dev value over the grid."""

from collections.abc import Mapping
from typing import Any

from analysis.plots import style
from analysis.tables import FEW, Search, Table, searches


@style.styled
def draw(table: Table) -> "style.Figure | None":
    """One line per method and ranks with at least two learning rates, its best rate circled; dots are seeds.

    If there are more than FEW, each gets a panel with common axes. None without any.
    """
    several = [search for search in searches(table) if len(search.tried) > 1 and search.chosen.dev is not None]
    if not several:
        return None
    if len(several) > FEW:
        from matplotlib.ticker import NullLocator

        figure, panels = style.panels(len(several), 2.3, 2.1, across=5)
        for axes, search in zip(panels, several, strict=True):
            axes.sharex(panels[0])
            axes.sharey(panels[0])
            _draw_search(axes, search, style.style(0))
            axes.set_title(style.wrapped(search.name, 26), fontsize=9)
            axes.tick_params(labelsize=8)
            axes.label_outer()  # dozens of panels with their own numbers would take a minute
        panels[0].set_xscale("log")
        panels[0].xaxis.set_minor_locator(NullLocator())  # applies to all panels, which share their axes
        figure.supxlabel("learning rate (log scale)", fontsize=10)
        figure.supylabel(f"{table.metric} on dev", fontsize=10)
        return figure
    styles = style.distinct_styles(table, [search.chosen for search in several])
    figure, axes = style.single(8.5, 4.6)
    for search in several:
        _draw_search(axes, search, styles[search.chosen])
    axes.set_xscale("log")
    axes.set(xlabel="learning rate (log scale)", ylabel=f"{table.metric} on dev")
    style.legend_below(figure, [axes], columns=3, handlelength=3.5)
    return figure


def _draw_search(axes: "style.Axes", search: Search, look: Mapping[str, Any]) -> None:
    points = [(rate, row.dev) for rate, row in search.tried.items() if row.dev is not None]
    axes.plot(*zip(*points, strict=True), **look, linewidth=1.8, markersize=6, label=style.plain(search.name))
    for rate, row in search.tried.items():
        values = [run.dev for run in row.runs if run.dev is not None]
        axes.plot([rate] * len(values), values, ".", color=look["color"], alpha=0.5, markersize=5)
    chosen = next(rate for rate, row in search.tried.items() if row is search.chosen)
    axes.plot([chosen], [search.chosen.dev or 0.0], "o", markersize=14, markerfacecolor="none", color=look["color"])
