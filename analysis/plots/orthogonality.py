"""Whether P and Q stay orthonormal during training, as AdaLoRA's penalty demands (arXiv 2303.10512, eq. 4)."""

from collections.abc import Sequence

from analysis.plots import style
from analysis.plots.learning_curves import curves, mean_curve
from analysis.rows import Row
from analysis.tables import Table


@style.styled
def draw(table: Table, rows: Sequence[Row], metrics: style.Records) -> "style.Figure | None":
    """‖AAᵀ − I‖_F over training steps, mean over all factors A and the seeds; None without any record of it."""
    means = {row: mean_curve(lines) for row in rows if (lines := curves(row, metrics, "train", "orthogonality"))}
    if not means:
        return None
    styles = style.styles(table)
    figure, axes = style.single(7.5, 3.8)
    for row, (steps, values) in means.items():
        every = max(1, steps.size // 8)
        axes.plot(steps, values, **styles[row], linewidth=2, markevery=every, label=style.plain(table.labels[row]))
    if all((values > 0).all() for _, values in means.values()):
        axes.set_yscale("log")
    axes.set(xlabel="optimiser step", ylabel="‖AAᵀ − I‖, mean over all P and Q")
    style.legend_below(figure, [axes], columns=2, handlelength=3.5)
    return figure
