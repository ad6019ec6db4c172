"""How each method answers to its learning rate: the best dev value over the grid."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from analysis.files import number
from analysis.plots import legend, style
from analysis.plots.names import broken
from analysis.tables import FEW, Table
from analysis.trials import Search, searches

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw(table: Table) -> "Figure | None":
    """A line for every method and ranks with two learning rates or more, its best rate ringed; dots are seeds.

    More than FEW of them get a panel each, with common axes. None without any.
    """
    several = [search for search in searches(table) if len(search.tried) > 1 and search.chosen.best is not None]
    if not several:
        return None
    import matplotlib

    with matplotlib.rc_context(style.RC):
        if len(several) > FEW:
            figure, panels = style.panels(len(several), 2.3, 2.1, across=5)
            for axes, search in zip(panels, several, strict=True):
                axes.sharex(panels[0])
                axes.sharey(panels[0])
                _draw_search(axes, search, style.look(0))
                axes.set_title(broken(search.name), fontsize=9)
                axes.tick_params(labelsize=8)
            panels[0].set_xscale("log")
            figure.supxlabel("learning rate (log scale)", fontsize=10)
            figure.supylabel(f"{table.metric} on dev, best checkpoint", fontsize=10)
            return figure
        looks = style.looks(table)
        own = [looks[search.chosen] for search in several]
        if len({look["color"] for look in own}) < len(own):  # several ranks of one method
            own = [style.look(place) for place in range(len(several))]
        figure = style.figure(8.5, 4.6)
        axes = figure.subplots()
        for search, look in zip(several, own, strict=True):
            _draw_search(axes, search, look)
        axes.set_xscale("log")
        axes.set_xlabel("learning rate (log scale)")
        axes.set_ylabel(f"{table.metric} on dev, best checkpoint")
        legend.below(figure, legend.entries([axes]), columns=3, handlelength=3.5)
    return figure


def _draw_search(axes: "Axes", search: Search, look: Mapping[str, Any]) -> None:
    points = [(rate, row.best) for rate, row in search.tried.items() if row.best is not None]
    axes.plot(*zip(*points, strict=True), **look, linewidth=1.8, markersize=6, label=style.plain(search.name))
    for rate, row in search.tried.items():
        values = [value for run in row.runs if (value := number(run.summary["metric"].get("best"))) is not None]
        axes.plot([rate] * len(values), values, ".", color=look["color"], alpha=0.5, markersize=5)
    at = next(rate for rate, row in search.tried.items() if row is search.chosen)
    axes.plot([at], [search.chosen.best or 0.0], "o", markersize=14, markerfacecolor="none", color=look["color"])
