"""Whether the seeds put the rank in the same places, beside what chance would give."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from analysis import stats
from analysis.plots import style
from analysis.plots.names import broken, row_height
from analysis.rows import Row
from analysis.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def of_seeds(row: Row, generator: np.random.Generator) -> stats.Agreement | None:
    """Agreement of the final rank maps of the row's seeds; None for one seed or a uniform map."""
    finals = [run.summary["rank"]["final"] for run in row.runs]
    maps = [[float(final.get(module, 0)) for module in row.ranks] for final in finals]
    return stats.agreement(maps, generator)


def draw(table: Table, rows: Sequence[Row]) -> "Figure | None":
    """A line for each of `rows` whose seeds can be compared, the most agreed upon on top; None without any."""
    generator = np.random.default_rng(0)
    found = {row: value for row in rows if row.ranks and (value := of_seeds(row, generator)) is not None}
    if not found:
        return None
    import matplotlib

    order = sorted(found, key=lambda row: -found[row].value)
    with matplotlib.rc_context(style.RC):
        names = [f"{table.labels[row]}  ({len(row.runs)}\u00a0seeds)" for row in order]
        figure = style.figure(8.5, 2.1 + row_height(names) * len(order))
        axes = figure.subplots()
        _draw(axes, order, found)
        axes.set_yticks(range(len(order)), list(map(broken, names)))
        axes.set_ylim(len(order) - 0.4, -0.6)
        axes.set_xlim(-1.04, 1.04)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("Spearman correlation of the seeds' rank maps,\nmean over pairs of seeds")
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def _draw(axes: "Axes", order: Sequence[Row], found: Mapping[Row, stats.Agreement]) -> None:
    for y, row in enumerate(order):
        value, low, high = found[row]
        grey, blue = ("chance: modules shuffled, middle 95%", "found") if y == 0 else (None, None)
        axes.plot([low, high], [y, y], color="#c4c4c4", linewidth=9, solid_capstyle="butt", label=grey)
        axes.plot([value], [y], "o", color=style.COLOURS[0], markersize=8, label=blue)
