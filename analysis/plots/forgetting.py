"""Learning against forgetting over each method's learning rates."""

from statistics import fmean

from analysis import forgetting
from analysis.plots import style
from analysis.rows import Row
from analysis.tables import Table, searches


@style.styled
def draw(table: Table) -> "style.Figure | None":
    """One line per method and ranks, from its lowest learning rate to its highest: the table's metric against
    forgetting, means over the measured seeds. Of several measures, only the first is drawn. None if nothing was
    measured."""
    measured = [one.measure for row in table.rows for run in row.runs for one in forgetting.read(run)]
    if not measured:
        return None
    figure, axes = style.single(8.5, 5)
    for search in searches(table):
        points = [point for row in search.tried.values() if (point := _point(row, measured[0])) is not None]
        if points:
            look = style.style(len(axes.lines)) | {"markersize": 6}
            axes.plot(*zip(*points, strict=True), label=style.plain(search.name), **look)
    axes.set(xlabel=f"forgotten: {measured[0]}, worse than before by", ylabel=f"{table.metric} on {table.split}")
    style.legend_below(figure, [axes], columns=2, handlelength=3.5)
    return figure


def _point(row: Row, measure: str) -> tuple[float, float] | None:
    """(forgotten, metric), means over the row's measured runs."""
    found = [(one.lost, run.score[1]) for run in row.runs for one in forgetting.read(run) if one.measure == measure]
    return (fmean(lost for lost, _ in found), fmean(value for _, value in found)) if found else None
