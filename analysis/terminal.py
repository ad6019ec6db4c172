"""Everything as text for the terminal: tables, the runs that do not count with their reasons, how to read them."""

from collections.abc import Sequence

from analysis import cells
from analysis.across import across
from analysis.load import Run, state_counts
from analysis.notes import LEGEND, notes
from analysis.tables import Table


def as_text(runs: Sequence[Run], found: Sequence[Table]) -> str:
    """All of it; found: the tables of `runs`."""
    parts = [table_text(table) for table in found]
    parts += [grid_text(cells.across_grid(one)) for one in across(found)]
    uncounted = [f"  {run.name}: {run.state}, {run.reason}" for run in runs if run.state != "finished"]
    if uncounted:
        parts.append("\n".join([f"Not counted ({state_counts(runs)}):", *uncounted]))
    return "\n\n\n".join([*parts, "\n".join(LEGEND)])


def table_text(table: Table) -> str:
    """The table, what belongs below it and its notes."""
    parts = [grid_text(grid) for grid in (cells.main_grid(table), *cells.grids(table))]
    return "\n\n".join([*parts, "\n".join(notes(table))])


def grid_text(grid: cells.Grid) -> str:
    return "\n".join([grid.title, "", *_aligned([grid.header, *grid.rows])])


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """First column left, the others right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    head, *rest = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
    return [head, "-" * len(head), *rest]
