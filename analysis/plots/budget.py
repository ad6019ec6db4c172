"""How the budget fell: mean rank per module against the step, as recorded at every allocation."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.files import number
from analysis.plots import legend, style
from analysis.rows import Row
from analysis.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(table: Table, rows: Sequence[Row], allocations: Mapping[str, Sequence[Mapping[str, Any]]]) -> "Figure | None":
    """The figure; allocations: {run name: the records of its allocations.jsonl}. None without any allocation.

    The budget follows the schedule, not the seed: one line a configuration, from its first seed with records.
    """
    lines = {row: mean_ranks(row, allocations) for row in rows}
    if not any(line.size for line in lines.values()):
        return None
    import matplotlib

    looks = style.looks(table)
    widths = np.linspace(
        2.2 if len(rows) == 1 else 6.0, 2.2, len(rows)
    )  # lines often coincide: those below stay visible
    with matplotlib.rc_context(style.RC):
        figure = style.figure(7, 3.8)
        axes = figure.subplots()
        for width, (row, (steps, ranks)) in zip(widths, lines.items(), strict=True):
            if steps.size:
                look = looks[row] | {
                    "linestyle": "-",
                    "drawstyle": "steps-post",
                    "label": style.plain(table.labels[row]),
                }
                axes.plot(
                    steps, ranks, **look, linewidth=width, markersize=width + 5, markevery=max(1, steps.size // 8)
                )
        axes.set_ylim(0, 1.06 * axes.get_ylim()[1])
        axes.set_xlabel("optimiser step")
        axes.set_ylabel("mean rank per module (triplets)")
        legend.below(figure, legend.entries([axes]), columns=2, handlelength=3.5)
    return figure


def mean_ranks(row: Row, allocations: Mapping[str, Sequence[Mapping[str, Any]]]) -> NDArray[np.float64]:
    """Steps and mean ranks [2, allocations] of the row's first seed with records, from the rank at creation on."""
    start = [] if row.initial_rank is None else [(0.0, row.initial_rank)]
    for run in row.runs:
        kept = [(number(record.get("step")), number(record.get("kept"))) for record in allocations.get(run.name, ())]
        points = [(step, value / len(row.ranks)) for step, value in kept if step is not None and value is not None]
        if points and row.ranks:
            return np.array(start + sorted(points)).T
    return np.empty((2, 0))
