"""How each method answers to its learning rate: the best dev value over the grid."""

from typing import TYPE_CHECKING

from analysis import formats
from analysis.cautions import trials
from analysis.load import number
from analysis.plots import style
from analysis.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(table: Table) -> "Figure | None":
    """A line for every method and ranks with two learning rates or more, its best rate ringed; dots are seeds. None
    without any."""
    lines = {key: rows for key, rows in trials(table).items() if len(rows) > 1}
    if not lines:
        return None
    import matplotlib

    looks = style.looks(table)
    with matplotlib.rc_context(style.RC):
        figure = style.figure(8.5, 4.6 + 0.25 * ((len(lines) + 2) // 3))
        axes = figure.subplots()
        for (method, ranks), rows in lines.items():
            look = looks[next(iter(rows.values()))]
            points = [(lr, row.best) for lr, row in rows.items() if row.best is not None]
            if not points:
                continue
            label = style.plain(method if ranks == formats.BLANK else f"{method} {ranks}")
            axes.plot(*zip(*points, strict=True), **look, linewidth=1.8, markersize=6, label=label)
            for lr, row in rows.items():
                values = [value for run in row.runs if (value := number(run.summary["metric"].get("best"))) is not None]
                axes.plot([lr] * len(values), values, ".", color=look["color"], alpha=0.5, markersize=5)
            best = table.best_first(rows.values())[0]
            at = next(lr for lr, row in rows.items() if row is best)
            axes.plot([at], [best.best or 0.0], "o", markersize=14, markerfacecolor="none", color=look["color"])
        axes.set_xscale("log")
        axes.set_xlabel("learning rate (log scale)")
        axes.set_ylabel(f"{table.metric} on dev, best checkpoint")
        figure.legend(loc="outside lower center", ncols=3, handlelength=3.5)
    return figure
