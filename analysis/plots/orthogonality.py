"""Whether P and Q stay orthonormal while they train, as AdaLoRA's penalty asks (arXiv 2303.10512, eq. 4)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from analysis.plots import legend, style
from analysis.plots.learning_curves import Records, curves, mean_curve
from analysis.rows import Row
from analysis.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(table: Table, rows: Sequence[Row], metrics: Mapping[str, Records]) -> "Figure | None":
    """‖AAᵀ − I‖_F against the step, mean over all factors A and the seeds, a line a configuration, on a log scale; None
    without any record of it."""
    found = {row: lines for row in rows if (lines := curves(row, metrics, "train", "orthogonality"))}
    if not found:
        return None
    import matplotlib

    looks = style.looks(table)
    with matplotlib.rc_context(style.RC):
        figure = style.figure(7.5, 3.8)
        axes = figure.subplots()
        means = {row: mean_curve(lines) for row, lines in found.items()}
        for row, (steps, values) in means.items():
            every = max(1, steps.size // 8)
            axes.plot(steps, values, **looks[row], linewidth=2, markevery=every, label=style.plain(table.labels[row]))
        if all((values > 0).all() for _, values in means.values()):
            axes.set_yscale("log")
        axes.set_xlabel("optimiser step")
        axes.set_ylabel("‖AAᵀ − I‖, mean over all P and Q")
        legend.below(figure, legend.entries([axes]), columns=2, handlelength=3.5)
    return figure
