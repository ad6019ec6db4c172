"""Whether two runs changed the weights in the same directions, compared with random directions."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adarank.runs.files import SIMILARITY
from analysis.load import Run, read_measurement
from analysis.plots import style
from analysis.tables import Table

PAIRS = 3
SIDES = ("input", "output")


class Pair(NamedTuple):
    """φ(i, j) [m, n], mean over the modules with i and j directions, or NaN; chance: that of random ones, max(i, j) /
    d."""

    label: str
    observed: dict[str, NDArray[np.float64]]
    chance: dict[str, NDArray[np.float64]]


@style.styled
def draw(table: Table) -> "style.Figure | None":
    """One row of panels per pair of runs, at most PAIRS: φ on either side, next to its chance level; None without
    pairs."""
    names = {run.folder.name: label for label, run in table.labelled_runs()}
    pairs = [pair for _, run in table.labelled_runs() for pair in read(run, names)][:PAIRS]
    if not pairs:
        return None
    from matplotlib.ticker import MaxNLocator

    top = max(
        float(np.nanmax(values[side])) for pair in pairs for values in (pair.observed, pair.chance) for side in SIDES
    )
    figure = style.figure(12.5, 0.7 + 3.1 * len(pairs))
    panels = figure.subplots(len(pairs), 4, squeeze=False)
    for line, pair in zip(panels, pairs, strict=True):
        grids = [values[side] for side in SIDES for values in (pair.observed, pair.chance)]
        for axes, values, title in zip(line, grids, ("input side", "chance", "output side", "chance"), strict=True):
            axes.grid(visible=False)
            image = axes.imshow(values, cmap="cividis", vmin=0, vmax=top, origin="lower", aspect="auto",
                                extent=(0.5, values.shape[1] + 0.5, 0.5, values.shape[0] + 0.5))  # fmt: skip
            axes.set_title(title, fontsize=10)
            axes.set_xlabel("j")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        line[0].set_ylabel("\n".join(style.wrapped(part) for part in pair.label.splitlines()), fontsize=9)
    figure.colorbar(image, ax=panels, label="φ(i, j), mean over modules", shrink=0.8)
    return figure


def read(run: Run, names: Mapping[str, str]) -> list[Pair]:
    """The pairs in the run's similarity.json, if it can be read. names: {run folder: label}."""

    def chance(module: dict[str, Any], side: str) -> NDArray[np.float64]:
        m, n = np.array(module[side]).shape
        return np.maximum.outer(np.arange(1, m + 1), np.arange(1, n + 1)) / float(module["sides"][side == "input"])

    def parse(content: Any) -> list[Pair]:
        return [
            Pair(
                f"i: {names.get(run.folder.name, run.folder.name)}\nj: {names.get(other, other)}",
                {side: _mean([np.array(m[side], dtype=np.float64) for m in modules.values()]) for side in SIDES},
                {side: _mean([chance(m, side) for m in modules.values()]) for side in SIDES},
            )
            for other, modules in content["with"].items()
            if modules
        ]

    return read_measurement(run, SIMILARITY, parse) or []


def _mean(grids: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    rows, columns = (max(grid.shape[axis] for grid in grids) for axis in (0, 1))
    total, count = np.zeros((rows, columns)), np.zeros((rows, columns))
    for grid in grids:
        total[: grid.shape[0], : grid.shape[1]] += grid
        count[: grid.shape[0], : grid.shape[1]] += 1
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
