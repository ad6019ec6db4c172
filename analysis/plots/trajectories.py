"""How the ranks changed: one line of colour per module, from creation to the end."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from adarank.runs.modules import place_of
from analysis.load import number
from analysis.plots import style
from analysis.rows import Row
from analysis.tables import Table


@style.styled
def draw(table: Table, rows: Sequence[Row], allocations: style.Records) -> "style.Figure | None":
    """One panel per configuration, its first seed with records; allocations: {run name: records}. None without any."""
    paths = {row: path for row in rows if (path := path_of(row, allocations)) is not None}
    if not paths:
        return None
    top = max(float(np.nanmax(ranks)) for _, ranks in paths.values())
    figure, panels = style.panels(len(paths), 4.6, 3.6)
    for axes, (row, (edges, ranks)) in zip(panels, paths.items(), strict=True):
        order, kinds = by_kind(list(row.ranks))
        axes.grid(visible=False)
        heights = np.arange(len(order) + 1)
        image = axes.pcolormesh(edges, heights, ranks[order], cmap="cividis", vmin=0, vmax=top, rasterized=True)
        axes.invert_yaxis()
        axes.set_yticks([(a + b) / 2 for a, b in kinds.values()], [style.wrapped(k, 30) for k in kinds], fontsize=8)
        for _, end in list(kinds.values())[:-1]:
            axes.axhline(end, color="white", linewidth=1.5)
        axes.set_title(style.wrapped(table.labels[row]), fontsize=10)
        axes.set_xlabel("optimiser step")
    panels[0].set_ylabel("module: by kind, then block, the first on top", fontsize=9)
    figure.colorbar(image, ax=panels, label="rank (triplets)", shrink=0.9)
    return figure


def path_of(row: Row, allocations: style.Records) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Edges in steps [intervals + 1] and ranks [modules, intervals], NaN if a record lacks a module."""
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
    """The modules' indices ordered by kind, by block within it, and each kind's range in that order.

    If a model has several stacks of blocks (encoder and decoder), their kinds are separate: "decoder fc1".
    """
    places = [place_of(module) for module in modules]
    several = len({place.stack for place in places if place.block is not None}) > 1
    groups: dict[str, list[int]] = {}
    for i, place in enumerate(places):
        groups.setdefault(f"{place.stack} {place.kind}" if several and place.stack else place.kind, []).append(i)
    order = [i for indices in groups.values() for i in indices]
    ends = np.cumsum([len(indices) for indices in groups.values()]).tolist()
    return order, {kind: (end - len(indices), end) for (kind, indices), end in zip(groups.items(), ends, strict=True)}
