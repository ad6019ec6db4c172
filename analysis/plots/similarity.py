"""Whether two runs changed the weights in the same directions, beside what random directions would share."""

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.load import Run
from analysis.plots import style
from analysis.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAIRS = 3
SIDES = ("input", "output")


class Pair(NamedTuple):
    """φ(i, j) between two runs [m, n], mean over the modules that have i and j directions, NaN where none has; chance:
    the same of random directions, max(i, j) / d."""

    label: str
    found: dict[str, NDArray[np.float64]]
    chance: dict[str, NDArray[np.float64]]


def draw(table: Table) -> "Figure | None":
    """A line of panels a pair of runs, at most PAIRS: φ of the input side and of the output side, each beside its chance
    level; None where no pair was compared."""
    names = {run.folder.name: f"{table.labels[row]}, seed {run.seed}" for row in table.rows for run in row.runs}
    pairs = [pair for row in table.rows for run in row.runs for pair in read(run, names)][:PAIRS]
    if not pairs:
        return None
    import matplotlib
    from matplotlib.ticker import MaxNLocator

    top = max(
        float(np.nanmax(values[side])) for pair in pairs for values in (pair.found, pair.chance) for side in SIDES
    )
    with matplotlib.rc_context(style.RC | {"axes.grid": False}):
        figure = style.figure(12.5, 0.7 + 3.1 * len(pairs))
        panels = figure.subplots(len(pairs), 4, squeeze=False)
        for line, pair in zip(panels, pairs, strict=True):
            shown = [values[side] for side in SIDES for values in (pair.found, pair.chance)]
            for axes, values, title in zip(line, shown, ("input side", "chance", "output side", "chance"), strict=True):
                image = axes.imshow(values, cmap="cividis", vmin=0, vmax=top, origin="lower", aspect="auto",
                                    extent=(0.5, values.shape[1] + 0.5, 0.5, values.shape[0] + 0.5))  # fmt: skip
                axes.set_title(title, fontsize=10)
                axes.set_xlabel("j")
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
                axes.yaxis.set_major_locator(MaxNLocator(integer=True))
            line[0].set_ylabel(style.plain(pair.label), fontsize=9)
        figure.colorbar(image, ax=panels, label="φ(i, j), mean over modules", shrink=0.8)
    return figure


def read(run: Run, names: dict[str, str]) -> list[Pair]:
    """The pairs of the run's similarity.json; none where there is no such file to read. names: {run folder: label}."""
    try:
        found = json.loads((run.folder / "similarity.json").read_bytes())["with"]
        return [
            Pair(
                f"i: {names.get(run.folder.name, run.folder.name)}\nj: {names.get(other, other)}",
                {side: _mean([np.array(m[side], dtype=np.float64) for m in modules.values()]) for side in SIDES},
                {side: _mean([_chance(m, side) for m in modules.values()]) for side in SIDES},
            )
            for other, modules in found.items()
            if modules
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return []


def _chance(module: dict[str, Any], side: str) -> NDArray[np.float64]:
    m, n = np.array(module[side]).shape
    d = module["sides"][1 if side == "input" else 0]
    return np.maximum.outer(np.arange(1, m + 1), np.arange(1, n + 1)) / float(d)


def _mean(grids: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    rows, columns = (max(grid.shape[axis] for grid in grids) for axis in (0, 1))
    total, count = np.zeros((rows, columns)), np.zeros((rows, columns))
    for grid in grids:
        total[: grid.shape[0], : grid.shape[1]] += grid
        count[: grid.shape[0], : grid.shape[1]] += 1
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
