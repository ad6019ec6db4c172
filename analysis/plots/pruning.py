"""The cost of pruning by each score, before and after retraining."""

from analysis import pruning
from analysis.plots import style
from analysis.tables import Table

SHOWN = ("adalora", "magnitude", "sensitivity", "fisher", "output", "taylor", "oracle_stepwise", "random")


@style.styled
def draw(table: Table) -> "style.Figure | None":
    """Mean regret of the orders in SHOWN against the number of triplets kept, for the first measured row: right after
    pruning on the left and after retraining, if any, on the right. None if no row was measured."""
    measured = next((found for row in table.rows if (found := pruning.by_state(row))), None)
    if measured is None:
        return None
    panels = {"right after pruning": pruning.curves(measured, after=False)}
    if any(orders := pruning.curves(measured, after=True)):
        panels["after retraining"] = orders
    figure, axes_of = style.panels(len(panels), 4.6, 3.6)
    for axes, (title, orders) in zip(axes_of, panels.items(), strict=True):
        for i, order in enumerate(name for name in SHOWN if name in orders):
            curve = orders[order]
            axes.plot(list(curve), list(curve.values()), label=style.plain(order), **style.style(i))
        axes.axhline(0.0, color="black", linewidth=0.8)
        axes.set_title(title, fontsize=10)
        axes.set(xlabel="triplets kept", ylabel="dev loss − that of the oracle's order")
    style.legend_below(figure, axes_of, columns=4, fontsize=9)
    return figure
