"""A picture of the ranks of a model: layers down, the modules of a layer across."""

from collections.abc import Mapping

import numpy as np


def rank_heatmap(ranks: Mapping[str, int], *, highest: int, title: str) -> np.ndarray:
    """Draw {module name: rank} as an RGBA image, uint8 [height, width, 4]; `highest` is the top of the colour scale.

    A cell without a module is grey. Uses no pyplot, so that neither the user's backend nor open figures are touched.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns, grid = rank_grid(ranks)
    figure = Figure(figsize=(2.5 + 0.6 * len(columns), 2.5 + 0.35 * len(rows)), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor="0.9")
    image = axes.imshow(grid, vmin=0, vmax=highest, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.set(title=title, xlabel="module", ylabel="layer")
    figure.colorbar(image, ax=axes, label="rank")
    for (row, column), rank in np.ndenumerate(grid):
        if not np.isnan(rank):
            axes.text(column, row, f"{rank:g}", ha="center", va="center", color="k" if rank > highest / 2 else "w")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()


def rank_grid(ranks: Mapping[str, int]) -> tuple[list[str], list[str], np.ndarray]:
    """Lay {module name: rank} out as (row labels, column labels, float64 [rows, columns]); NaN where there is none.

    The layer is the first component of the dotted name that is all digits; what follows it names the column. Rows
    are labelled with the number alone, or with the name up to it where a model has several stacks of layers.
    A module outside every layer stands in a last row of its own.
    """
    places = {name: _place(name) for name in ranks}
    numbered = sorted({place[:2] for place in places.values()}, key=lambda layer: (layer[1] < 0, *layer))
    stacks = {stack for stack, number in numbered if number >= 0}
    columns = list(dict.fromkeys(column for _, _, column in places.values()))
    grid = np.full((len(numbered), len(columns)), np.nan)
    for name, (stack, number, column) in places.items():
        grid[numbered.index((stack, number)), columns.index(column)] = ranks[name]
    labels = [_label(stack, number, alone=len(stacks) == 1) for stack, number in numbered]
    return labels, columns, grid


def _place(name: str) -> tuple[str, int, str]:
    """(stack, layer number, column) of a module: "encoder.layer.3.attention.query" is in stack "encoder.layer"."""
    parts = name.split(".")
    for index, part in enumerate(parts):
        if part.isdecimal():
            return ".".join(parts[:index]), int(part), ".".join(parts[index + 1 :]) or parts[max(0, index - 1)]
    return "", -1, name


def _label(stack: str, number: int, *, alone: bool) -> str:
    if number < 0:
        return "none"
    return str(number) if alone else f"{stack}.{number}"
