"""What the allocator saw last: the spread of the scores within every module."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.files import number
from analysis.plots import legend, style
from analysis.plots.names import broken
from analysis.plots.trajectories import by_kind
from analysis.rows import Row
from analysis.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Records = Sequence[Mapping[str, Any]]


def draw(table: Table, rows: Sequence[Row], allocations: Mapping[str, Records]) -> "Figure | None":
    """A panel a configuration: its first seed's last allocation. Thin: smallest to largest score of a module, thick:
    the middle half, dot: the median. None without any score."""
    found = {row: values for row in rows if (values := last_quantiles(row, allocations)) is not None}
    if not found:
        return None
    import matplotlib

    with matplotlib.rc_context(style.RC):
        figure, panels = style.panels(len(found), 4.6, 3.4)
        for axes, (row, quantiles) in zip(panels, found.items(), strict=True):
            order, kinds = by_kind(list(row.ranks))
            _draw(axes, quantiles[order], kinds)
            axes.set_title(broken(table.labels[row]), fontsize=10)
            axes.set_xlabel("module: layers within each kind", fontsize=9)
            axes.set_ylabel("score", fontsize=9)
        legend.below(figure, legend.entries(panels), columns=3, fontsize=9)
    return figure


def last_quantiles(row: Row, allocations: Mapping[str, Records]) -> NDArray[np.float64] | None:
    """Quantiles (0, 25, 50, 75, 100%) of the scores at the last allocation [modules, 5], NaN where there is none."""
    for run in row.runs:
        for record in reversed(allocations.get(run.name, ())):
            scores = record.get("score_quantiles")
            if isinstance(scores, dict):
                nothing = [None] * 5
                rows = [[number(v) for v in scores.get(module, nothing)] for module in row.ranks]
                values = np.array(rows, dtype=np.float64)
                return values if np.isfinite(values).any() else None
    return None


def _draw(axes: "Axes", quantiles: NDArray[np.float64], kinds: Mapping[str, tuple[int, int]]) -> None:
    positive = quantiles[quantiles > 0]
    spread = positive.size and not (quantiles < 0).any() and positive.max() > 30 * positive.min()
    if spread:  # a log scale; zeros stand at its lower end
        quantiles = np.where(quantiles == 0, positive.min(), quantiles)
        axes.set_yscale("log")
    for place, (kind, (begin, end)) in enumerate(kinds.items()):
        x, values = np.arange(begin, end), quantiles[begin:end]
        colour = style.COLOURS[place % len(style.COLOURS)]
        axes.vlines(x, values[:, 0], values[:, 4], color=colour, linewidth=0.8)
        axes.vlines(x, values[:, 1], values[:, 3], color=colour, linewidth=3.2)
        marker = style.MARKERS[place % len(style.MARKERS)]
        axes.plot(
            x, values[:, 2], marker, color=colour, markeredgecolor="white", markersize=5.5, label=style.plain(kind)
        )
    axes.set_xticks([])
