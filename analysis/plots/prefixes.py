"""How good the first triplets of one run are, compared with runs that were tuned for each rank."""

import math
from statistics import fmean

from analysis import curves, prefixes
from analysis.plots import style
from analysis.tables import Table


@style.styled
def draw(table: Table) -> "style.Figure | None":
    """The metric over the prefix ranks of every measured row, mean over seeds, with one dot per seed; dotted, that of
    the best approximations of its ΔW at these ranks; and that of every method that has tuned runs for a curve. None if
    no row was measured."""
    measured = prefixes.measured_rows(table)
    if not measured:
        return None
    figure, axes = style.single(7, 4)
    for i, (row, by_seed) in enumerate(measured.items()):
        look = style.style(i)
        ranks = list(next(iter(by_seed.values())))
        means = [fmean(scores[rank] for scores in by_seed.values()) for rank in ranks]
        axes.plot(ranks, means, label=style.plain(f"{table.labels[row]}, one run"), **look)
        for scores in by_seed.values():
            axes.plot(ranks, list(scores.values()), ".", color=look["color"], alpha=0.5, markersize=5)
        if cut := prefixes.by_seed(row, svd=True):
            ranks = list(next(iter(cut.values())))
            means = [fmean(scores[rank] for scores in cut.values()) for rank in ranks]
            label = style.plain(f"{table.labels[row]}, cut by SVD")
            axes.plot(ranks, means, label=label, **look | {"linestyle": ":", "markerfacecolor": "white"})
    for i, (kind, by_rank) in enumerate(curves.curves(table).items(), len(measured)):
        means = [fmean(values.values()) if (values := prefixes.at_best(row)) else math.nan for row in by_rank.values()]
        look = style.style(i) | {"markerfacecolor": "white"}
        axes.plot(list(by_rank), means, label=style.plain(f"{kind}, a tuned run for each rank"), **look)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(xlabel="rank of every module", ylabel=f"{table.metric} on {table.split}")
    style.legend_below(figure, [axes], columns=2, handlelength=3.5)
    return figure
