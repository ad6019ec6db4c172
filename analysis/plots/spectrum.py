"""How fast the change's singular values fall: many small directions, or few large ones."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from analysis.delta import Delta, read
from analysis.plots import legend, style
from analysis.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(table: Table) -> "Figure | None":
    """A line a configuration, median over modules and seeds, the middle half shaded; None where no run was looked at."""
    deltas = {row: [d for run in row.runs if (d := read(run)) is not None] for row in table.shown}
    found = {row: values(several) for row, several in deltas.items() if several}
    found = {row: sigma for row, sigma in found.items() if (sigma > 0).any()}
    if not found:
        return None
    import matplotlib

    looks = style.looks(table)
    with matplotlib.rc_context(style.RC):
        figure = style.figure(8.5, 4.3)
        axes = figure.subplots()
        for row, sigma in found.items():
            low, middle, high = (np.where(q > 0, q, np.nan) for q in np.quantile(sigma, [0.25, 0.5, 0.75], axis=0))
            places = np.arange(1, sigma.shape[1] + 1)
            axes.fill_between(places, low, high, color=looks[row]["color"], alpha=0.15, linewidth=0)
            axes.plot(places, middle, **looks[row], markersize=4.5, label=style.plain(table.labels[row]))
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("place of the singular value in its module")
        axes.set_ylabel("singular value of ΔW")
        legend.below(figure, legend.entries([axes]), columns=3)
    return figure


def values(deltas: list[Delta]) -> NDArray[np.float64]:
    """Singular values of every module and seed [modules · seeds, longest], 0 beyond a module's rank."""
    each = [module.sigma for delta in deltas for module in delta.modules.values()]
    longest = max(map(len, each))
    return np.array([[*sigma, *[0.0] * (longest - len(sigma))] for sigma in each], dtype=np.float64)
