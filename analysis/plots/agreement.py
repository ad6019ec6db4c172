"""Whether seeds assign the rank to the same modules, compared with chance."""

from collections.abc import Sequence

import numpy as np

from analysis import stats
from analysis.plots import style
from analysis.rows import Row
from analysis.tables import Table


@style.styled
def draw(table: Table, rows: Sequence[Row]) -> "style.Figure | None":
    """One line per row whose seeds can be compared, the highest agreement on top; None without any."""
    generator = np.random.default_rng(0)
    agreements = {}
    for row in rows:
        finals = [run.summary["rank"]["final"] for run in row.runs if row.ranks]
        maps = [[float(final.get(module, 0)) for module in row.ranks] for final in finals]
        if (agreement := stats.agreement(maps, generator)) is not None:
            agreements[row] = agreement
    if not agreements:
        return None
    order = sorted(agreements, key=lambda row: -agreements[row].value)
    figure, axes = style.listing([f"{table.labels[row]}  ({len(row.runs)}\u00a0seeds)" for row in order], 2.1)
    for y, row in enumerate(order):
        correlation, low, high = agreements[row]
        chance, observed = ("chance: modules shuffled, middle 95%", "observed") if y == 0 else (None, None)
        axes.plot([low, high], [y, y], color="#c4c4c4", linewidth=9, solid_capstyle="butt", label=chance)
        axes.plot([correlation], [y], "o", color=style.COLOURS[0], markersize=8, label=observed)
    axes.set_xlim(-1.04, 1.04)
    axes.set_xlabel("Spearman correlation of the seeds' rank maps,\nmean over pairs of seeds")
    figure.legend(loc="outside lower center", ncols=2)
    return figure
