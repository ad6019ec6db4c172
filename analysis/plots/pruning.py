"""The cost of pruning by each score, before and after retraining."""

from analysis import pruning
from analysis.plots import style
from analysis.tables import Table

SHOWN = ("adalora", "magnitude", "taylor", "oracle", "oracle_absolute", "worst_first", "random")


@style.styled
def draw(table: Table) -> "style.Figure | None":
    """The mean loss above the unpruned model of the orders in SHOWN against the number of triplets kept, for the first
    measured row: right after pruning on the left and after retraining, if any, on the right. None if no row was
    measured."""
    measured = next((found for row in table.rows if (found := pruning.by_state(row))), None)
    if measured is None:
        return None
    moments = sorted({steps for _, steps, _ in measured})
    figure, axes_of = style.panels(len(moments), 4.6, 3.6)
    for axes, steps in zip(axes_of, moments, strict=True):
        orders = pruning.curves(measured, steps)
        for i, order in enumerate(SHOWN):
            if order in orders:
                curve = orders[order]
                axes.plot(list(curve), list(curve.values()), label=style.plain(order), **style.style(i))
        axes.axhline(0.0, color="black", linewidth=0.8)
        axes.set_title(f"after {steps} steps of retraining" if steps else "right after pruning", fontsize=10)
        axes.set(xlabel="triplets kept", ylabel="mean dev loss − the unpruned model's")
    ends = [end for axes in axes_of for end in axes.get_ylim()]
    for axes in axes_of:
        axes.set_ylim(min(ends), max(ends))
    style.legend_below(figure, axes_of, columns=4, fontsize=9)
    return figure
