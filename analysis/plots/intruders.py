"""Which methods give the weights leading directions that the pretrained weights lack."""

from analysis import weight_change
from analysis.plots import style
from analysis.tables import Table


@style.styled
def draw(table: Table) -> "style.Figure | None":
    """Intruders, mean over modules, with one dot per seed and a bar for their mean; None if no run was analysed."""
    changes = weight_change.by_row(table.rows)
    if not changes:
        return None
    counts = {
        row: [sum(m.intruders for m in change.modules.values()) / len(change.modules) for change in several]
        for row, several in changes.items()
    }
    top = max(change.top for several in changes.values() for change in several)
    means = {row: sum(values) / len(values) for row, values in counts.items()}
    order = sorted(counts, key=lambda row: -means[row])
    seeds = [f"{len(counts[row])}\u00a0seed{'s' * (len(counts[row]) != 1)}" for row in order]
    figure, axes = style.listing([f"{table.labels[row]}  ({n})" for row, n in zip(order, seeds, strict=True)], 1.6)
    for y, row in enumerate(order):
        axes.barh(y, means[row], height=0.55, color="#c4c4c4")
        axes.plot(counts[row], [y] * len(counts[row]), "o", color=style.COLOURS[0], markersize=6.5)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"intruder dimensions among the {top} leading ones of a module,\nmean over modules")
    return figure
