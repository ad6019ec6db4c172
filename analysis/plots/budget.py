"""The budget during training: mean rank per module, as recorded at every allocation."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from analysis.load import number
from analysis.plots import style
from analysis.rows import Row
from analysis.tables import Table


@style.styled
def draw(table: Table, rows: Sequence[Row], allocations: style.Records) -> "style.Figure | None":
    """The figure; allocations: {run name: the records of its allocations.jsonl}. None without any allocation.

    The budget follows the schedule, not the seed: one line per configuration, from its first seed with records.
    """
    lines = {row: mean_ranks(row, allocations) for row in rows}
    if not any(line.size for line in lines.values()):
        return None
    styles = style.styles(table)
    figure, axes = style.single(7, 3.8)
    # lines often coincide; drawing later ones thinner keeps those below visible
    widths = np.linspace(2.2 if len(rows) == 1 else 6.0, 2.2, len(rows))
    for width, (row, (steps, ranks)) in zip(widths, lines.items(), strict=True):
        if steps.size:
            look = styles[row] | {"linestyle": "-", "linewidth": width, "markersize": width + 5}
            every, label = max(1, steps.size // 8), style.plain(table.labels[row])
            axes.plot(steps, ranks, **look, drawstyle="steps-post", markevery=every, label=label)
    axes.set_ylim(0, 1.06 * axes.get_ylim()[1])
    axes.set(xlabel="optimiser step", ylabel="mean rank per module (triplets)")
    style.legend_below(figure, [axes], columns=2, handlelength=3.5)
    return figure


def mean_ranks(row: Row, allocations: style.Records) -> NDArray[np.float64]:
    """Steps and mean ranks [2, allocations] of the row's first seed with records, from the rank at creation on."""
    start = [] if row.initial_rank is None else [(0.0, row.initial_rank)]
    for run in row.runs:
        kept = [(number(record.get("step")), number(record.get("kept"))) for record in allocations.get(run.name, ())]
        points = [(step, value / len(row.ranks)) for step, value in kept if step is not None and value is not None]
        if points and row.ranks:
            return np.array(start + sorted(points)).T
    return np.empty((2, 0))
