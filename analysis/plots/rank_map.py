"""Where the rank went: final rank of every target module, one line per block, one column per kind of module."""

import numpy as np

from adarank.runs.modules import rank_grid
from analysis import formats
from analysis.plots import style
from analysis.rows import Row

CROWDED = 64  # columns above which cells are narrow, without their number, and every eighth is labelled: experts


@style.styled
def draw(row: Row, label: str) -> "style.Figure | None":
    """The heat map of one configuration, mean over its seeds; None for one without ranks."""
    if not row.ranks:
        return None
    blocks, kinds, ranks = rank_grid(row.ranks)
    longest = max(map(len, kinds))
    crowded = len(kinds) > CROWDED
    column = 0.1 if crowded else 0.85
    figure = style.figure(
        2.6 + column * len(kinds) + 0.08 * max(map(len, blocks)), 1.7 + 0.42 * len(blocks) + 0.06 * longest
    )
    axes = figure.subplots()
    axes.grid(visible=False)
    top = max(float(np.nanmax(ranks)), 1.0)
    image = axes.imshow(ranks, cmap="cividis", vmin=0, vmax=top, aspect="auto")
    labelled = range(0, len(kinds), 8 if crowded else 1)
    names = [style.plain(kinds[i]) for i in labelled]
    axes.set_xticks(labelled, names, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(blocks)), list(map(style.plain, blocks)))
    axes.set(xlabel="module", ylabel="block")
    axes.spines[:].set_visible(False)
    for (y, x), value in np.ndenumerate(ranks):
        if np.isfinite(value) and not crowded:
            ink = "white" if value < 0.47 * top else "black"  # cividis: dark below, light above
            rank = formats.rank(round(value, 1))
            axes.text(x, y, rank, ha="center", va="center", color=ink, fontsize=10)
    figure.colorbar(image, ax=axes, label="final rank (triplets)", shrink=0.9)
    seeds = f"mean of {len(row.runs)} seeds" if len(row.runs) > 1 else "one seed"
    figure.suptitle(style.wrapped(f"{label} ({seeds})", round(8 * figure.get_figwidth())), fontsize=12)
    return figure
