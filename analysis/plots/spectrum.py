"""How fast the singular values of the weight change decay: many small directions, or few large ones."""

import numpy as np
from numpy.typing import NDArray

from analysis import weight_change
from analysis.plots import style
from analysis.tables import Table


@style.styled
def draw(table: Table) -> "style.Figure | None":
    """One line per configuration: median over modules and seeds, the middle half shaded; None without analysed runs."""
    changes = weight_change.by_row(table.shown)
    spectra = {row: values(several) for row, several in changes.items()}
    spectra = {row: sigma for row, sigma in spectra.items() if (sigma > 0).any()}
    if not spectra:
        return None
    styles = style.styles(table)
    figure, axes = style.single(8.5, 4.3)
    for row, sigma in spectra.items():
        low, middle, high = (np.where(q > 0, q, np.nan) for q in np.quantile(sigma, [0.25, 0.5, 0.75], axis=0))
        index = np.arange(1, sigma.shape[1] + 1)
        axes.fill_between(index, low, high, color=styles[row]["color"], alpha=0.15, linewidth=0)
        axes.plot(index, middle, **styles[row], markersize=4.5, label=style.plain(table.labels[row]))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set(xlabel="index of the singular value in its module", ylabel="singular value of ΔW")
    style.legend_below(figure, [axes], columns=3)
    return figure


def values(changes: list[weight_change.WeightChange]) -> NDArray[np.float64]:
    """Singular values of every module and seed [modules · seeds, longest], 0 beyond a module's rank."""
    spectra = [module.sigma for change in changes for module in change.modules.values()]
    longest = max(map(len, spectra))
    return np.array([[*sigma, *[0.0] * (longest - len(sigma))] for sigma in spectra], dtype=np.float64)
