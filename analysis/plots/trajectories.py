"""How the ranks moved: a line of colour for every module, from creation to the end."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.files import number
from analysis.plots import style
from analysis.plots.names import broken
from analysis.plots.rank_map import split
from analysis.rows import Row
from analysis.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Records = Sequence[Mapping[str, Any]]


def draw(table: Table, rows: Sequence[Row], allocations: Mapping[str, Records]) -> "Figure | None":
    """A panel a configuration, its first seed with records; allocations: {run name: records}. None without any."""
    found = {row: path for row in rows if (path := path_of(row, allocations)) is not None}
    if not found:
        return None
    import matplotlib

    top = max(float(np.nanmax(ranks)) for _, ranks in found.values())
    with matplotlib.rc_context(style.RC | {"axes.grid": False}):
        figure, panels = style.panels(len(found), 4.6, 3.6)
        for axes, (row, (edges, ranks)) in zip(panels, found.items(), strict=True):
            order, kinds = by_kind(list(row.ranks))
            image = axes.pcolormesh(edges, np.arange(len(order) + 1), ranks[order], cmap="cividis", vmin=0, vmax=top)
            axes.invert_yaxis()
            axes.set_yticks([(a + b) / 2 for a, b in kinds.values()], [style.plain(k) for k in kinds], fontsize=8)
            for _, end in list(kinds.values())[:-1]:
                axes.axhline(end, color="white", linewidth=1.5)
            axes.set_title(broken(table.labels[row]), fontsize=10)
            axes.set_xlabel("optimiser step")
        panels[0].set_ylabel("module: layers within each kind, the first on top", fontsize=9)
        figure.colorbar(image, ax=panels, label="rank (triplets)", shrink=0.9)
    return figure


def path_of(row: Row, allocations: Mapping[str, Records]) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Edges in steps [stretches + 1] and ranks [modules, stretches], NaN where a record lacks a module."""
    for run in row.runs:
        known = {step: r["ranks"] for r in allocations.get(run.name, ())
                 if (step := number(r.get("step"))) is not None and isinstance(r.get("ranks"), dict)}  # fmt: skip
        if not known or not row.ranks:
            continue
        steps = sorted(known)
        last = max(number(run.summary.get("steps")) or 0.0, steps[-1] + 2)
        start = [row.initial_rank if row.initial_rank is not None else np.nan] * len(row.ranks)
        ranks = [start, *([number(known[step].get(module)) for module in row.ranks] for step in steps)]
        edges = np.array([0.0, *(step + 1 for step in steps), last])  # an allocation follows its step
        return edges, np.array(ranks, dtype=np.float64).T
    return None


def by_kind(modules: Sequence[str]) -> tuple[list[int], dict[str, tuple[int, int]]]:
    """The modules' places ordered by kind, layers within it, and each kind's stretch of that order."""
    places: dict[str, list[int]] = {}
    for place, module in enumerate(modules):
        places.setdefault(split(module)[1], []).append(place)
    order = [place for group in places.values() for place in group]
    ends = np.cumsum([len(group) for group in places.values()]).tolist()
    return order, {kind: (end - len(group), end) for (kind, group), end in zip(places.items(), ends, strict=True)}
