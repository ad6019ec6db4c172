"""Where the rank went: the final rank of every target module, with one line per block and one column per kind."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from adarank.runs.modules import rank_grid
from analysis import formats
from analysis.plots import style
from analysis.rows import Row

CROWDED = 64  # with more columns (experts), cells are narrow and unnumbered, and only every eighth is labelled
UNCHOSEN = ("uniform", "random")  # allocators that give every module the same rank, or random ranks


class Shades(NamedTuple):
    """The mapping from ranks to colours: a colour map of Matplotlib between two limits, and the scale's name."""

    palette: str
    low: float
    high: float
    name: str


def has_map(row: Row) -> bool:
    """Whether the row's method chose the ranks of its modules; equal, random or copied ranks need no map."""
    chosen = not row.is_rank_map and row.settings.get("allocator") not in UNCHOSEN
    return chosen and len(set(row.ranks.values())) > 1


def shared(rows: Sequence[Row]) -> Shades:
    """The scale on which the maps of all `rows` can be compared."""
    return Shades("cividis", 0.0, max((max(row.ranks.values()) for row in rows), default=1.0), "final rank (triplets)")


def to_compare(rows: Sequence[Row]) -> tuple[Row, Row] | None:
    """The first two of `rows` with maps over the same modules and the same mean rank; None without such a pair."""
    pairs = [(row, other) for i, row in enumerate(rows) for other in rows[i + 1 :]]
    same = [(row, other) for row, other in pairs if row.ranks.keys() == other.ranks.keys()]
    return next((p for p in same if abs((p[0].final_rank or 0.0) - (p[1].final_rank or 0.0)) < 0.1), None)


@style.styled
def draw(row: Row, label: str, shades: Shades | None = None) -> "style.Figure | None":
    """The heat map of one configuration, mean over its seeds; None for one without ranks."""
    if not row.ranks:
        return None
    seeds = f"mean of {len(row.runs)} seeds" if len(row.runs) > 1 else "one seed"
    return _draw(row.ranks, shades or shared([row]), f"{label} ({seeds})")


@style.styled
def draw_difference(row: Row, other: Row, label: str) -> "style.Figure | None":
    """The ranks of one configuration minus those of another with the same modules, mean over the seeds of each."""
    ranks = {module: rank - other.ranks[module] for module, rank in row.ranks.items()}
    top = max(map(abs, ranks.values())) or 1.0
    return _draw(ranks, Shades("PuOr", -top, top, "difference in final rank (triplets)"), label)


def _draw(ranks: dict[str, float], shades: Shades, title: str) -> "style.Figure":
    blocks, kinds, grid = rank_grid(ranks)
    longest = max(map(len, kinds))
    crowded = len(kinds) > CROWDED
    column = 0.1 if crowded else 0.85
    figure = style.figure(
        2.6 + column * len(kinds) + 0.08 * max(map(len, blocks)), 1.7 + 0.42 * len(blocks) + 0.06 * longest
    )
    axes = figure.subplots()
    axes.grid(visible=False)
    image = axes.imshow(grid, cmap=shades.palette, vmin=shades.low, vmax=shades.high, aspect="auto")
    labelled = range(0, len(kinds), 8 if crowded else 1)
    names = [style.plain(kinds[i]) for i in labelled]
    axes.set_xticks(labelled, names, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(blocks)), list(map(style.plain, blocks)))
    axes.set(xlabel="module", ylabel="block")
    axes.spines[:].set_visible(False)
    if not crowded:
        for (y, x), value in np.ndenumerate(grid):
            if np.isfinite(value):
                rank, ink = formats.rank(round(value, 1)), style.ink(*image.cmap(image.norm(value))[:3])
                axes.text(x, y, rank, ha="center", va="center", color=ink, fontsize=10)
    figure.colorbar(image, ax=axes, label=shades.name, shrink=0.9)
    figure.suptitle(style.wrapped(title, round(8 * figure.get_figwidth())), fontsize=12)
    return figure
