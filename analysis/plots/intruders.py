"""Which methods bring leading directions into the weights that the pretrained ones lack."""

from typing import TYPE_CHECKING

from analysis.delta import read
from analysis.plots import style
from analysis.plots.names import broken, row_height
from analysis.rows import Row
from analysis.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(table: Table) -> "Figure | None":
    """Intruders among a module's leading directions, mean over modules: a dot a seed, a bar for the seeds' mean; None
    where no run was looked at."""
    deltas = {row: [d for run in row.runs if (d := read(run)) is not None] for row in table.rows}
    found = {
        row: [sum(m.intruders for m in delta.modules.values()) / len(delta.modules) for delta in several]
        for row, several in deltas.items()
        if several
    }
    if not found:
        return None
    import matplotlib

    top = max(delta.top for several in deltas.values() for delta in several)
    order = sorted(found, key=lambda row: -sum(found[row]) / len(found[row]))

    def name(row: Row) -> str:
        seeds = len(found[row])
        return f"{table.labels[row]}  ({seeds}\u00a0seed{'s' * (seeds != 1)})"

    with matplotlib.rc_context(style.RC):
        names = list(map(name, order))
        figure = style.figure(8.5, 1.6 + row_height(names) * len(order))
        axes = figure.subplots()
        for y, row in enumerate(order):
            axes.barh(y, sum(found[row]) / len(found[row]), height=0.55, color="#c4c4c4")
            axes.plot(found[row], [y] * len(found[row]), "o", color=style.COLOURS[0], markersize=6.5)
        axes.set_yticks(range(len(order)), list(map(broken, names)))
        axes.set_ylim(len(order) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"intruder dimensions among the {top} leading ones of a module, mean over modules")
    return figure
