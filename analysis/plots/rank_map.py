"""Where the rank went: final rank of every target module, layers down, kinds of module across."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from analysis import formats
from analysis.plots import style
from analysis.plots.names import broken
from analysis.rows import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(row: Row, label: str) -> "Figure | None":
    """The heat map of one configuration, mean over its seeds; None for one without ranks."""
    if not row.ranks:
        return None
    import matplotlib

    layers, kinds, ranks = grid(row.ranks)
    longest = max(map(len, kinds))
    with matplotlib.rc_context(style.RC | {"axes.grid": False}):
        figure = style.figure(2.6 + 0.85 * len(kinds), 1.7 + 0.42 * len(layers) + 0.06 * longest)
        axes = figure.subplots()
        top = max(float(np.nanmax(ranks)), 1.0)
        image = axes.imshow(ranks, cmap="cividis", vmin=0, vmax=top, aspect="auto")
        axes.set_xticks(
            range(len(kinds)), list(map(style.plain, kinds)), rotation=35, ha="right", rotation_mode="anchor"
        )
        axes.set_yticks(range(len(layers)), list(map(style.plain, layers)))
        axes.set_xlabel("module")
        axes.set_ylabel("layer")
        axes.spines[:].set_visible(False)
        for (y, x), value in np.ndenumerate(ranks):
            if np.isfinite(value):
                ink = "white" if value < 0.47 * top else "black"  # cividis: dark below, light above
                axes.text(x, y, _short(value), ha="center", va="center", color=ink, fontsize=10)
        figure.colorbar(image, ax=axes, label="final rank (triplets)", shrink=0.9)
        seeds = f"mean of {len(row.runs)} seeds" if len(row.runs) > 1 else "one seed"
        figure.suptitle(broken(f"{label} ({seeds})", round(8 * figure.get_figwidth())), fontsize=12)
    return figure


def grid(ranks: dict[str, float]) -> tuple[list[str], list[str], NDArray[np.float64]]:
    """Layers, kinds and the ranks [layers, kinds], NaN where there is no such module.

    Layers are in the order of their numbers, kinds in that of the modules. A module without a number in its name
    is a row of its own, below.
    """
    places = {module: split(module) for module in ranks}
    layers = sorted({layer for layer, _ in places.values() if layer.isdigit()}, key=int)
    layers += _unique(layer for layer, _ in places.values() if not layer.isdigit())
    kinds = _unique(kind for _, kind in places.values())
    values = np.full((len(layers), len(kinds)), np.nan)
    for module, (layer, kind) in places.items():
        values[layers.index(layer), kinds.index(kind)] = ranks[module]
    return layers, kinds, values


def split(module: str) -> tuple[str, str]:
    """`bert.encoder.layer.3.attention.self.query` -> ("3", "attention.self.query"); no number: (name, last part)."""
    parts = module.split(".")
    for place, part in enumerate(parts[:-1]):
        if part.isdigit():
            return part, ".".join(parts[place + 1 :])
    return module, parts[-1]


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _short(value: float) -> str:
    return formats.rank(round(value, 1))
