"""Performance profile over tasks: the share of pairs in which a configuration beats LoRA by more than τ."""

import numpy as np

from analysis.plots import style
from analysis.verdicts import MANY_TASKS, AcrossTasks


@style.styled
def draw(over: AcrossTasks) -> "style.Figure | None":
    """One line per configuration, over all pairs of all tasks (Agarwal et al. 2021, arXiv 2108.13264, for differences
    in standard deviations of their task); None for fewer than MANY_TASKS tasks."""
    if len(over.tasks) < MANY_TASKS or not over.rows:
        return None
    figure, axes = style.single(8.5, 4.4)
    reach = max(float(np.abs(row.pairs).max(initial=0.0)) for row in over.rows)
    for i, row in enumerate(over.rows):
        values = np.sort(row.pairs)
        above = 1 - np.arange(1, values.size + 1) / values.size
        x, y = np.concatenate([[-reach], values, [reach]]), np.concatenate([[1.0], above, [0.0]])
        look = style.style(i) | {"marker": None}
        axes.step(x, y, where="post", **look, linewidth=1.8, label=style.plain(row.name))
    axes.axvline(0, color="#444444", linewidth=1)
    axes.set(
        xlabel="τ, in standard deviations of a task's differences", ylabel="share of pairs above τ", ylim=(0, 1.02)
    )
    style.legend_below(figure, [axes], columns=2, handlelength=3.5)
    return figure
