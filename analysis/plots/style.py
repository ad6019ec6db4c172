"""Colours, lines and markers that stay apart for the colour-blind and in grey print."""

from typing import TYPE_CHECKING, Any

from analysis.rows import Row
from analysis.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito 2008, without the yellow, which is too pale for lines on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (7, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
RC: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}


def looks(table: Table) -> dict[Row, dict[str, Any]]:
    """A colour, a line style and a marker for every row, the same in all figures of the table.

    Every row has its own where all are shown, else every kind of row, those shown first; after eight the markers move on by
    one, so that colour and marker together stay unique up to 64.
    """
    single = len(table.shown) == len(table.rows)
    order = [*table.shown, *table.rows]
    called = table.labels if single else table.kinds
    names = list(dict.fromkeys(called[row] for row in order))
    places = {row: names.index(called[row]) for row in table.rows}
    return {row: look(place) for row, place in places.items()}


def look(place: int) -> dict[str, Any]:
    """The colour, line style and marker of the line number `place`."""
    return {
        "color": COLOURS[place % len(COLOURS)],
        "linestyle": LINES[place % len(LINES)],
        "marker": MARKERS[(place + place // len(COLOURS)) % len(MARKERS)],
    }


def fits(row: Row, frame: tuple[float, float]) -> bool:
    """Whether the row has an interval that lies within the limits of its axis."""
    return row.half_width is not None and frame[0] <= row.mean - row.half_width <= row.mean + row.half_width <= frame[1]


def figure(width: float, height: float) -> "Figure":
    """An empty figure, sizes in inches, without pyplot's global state (and its second of import)."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def panels(count: int, width: float, height: float, across: int = 3) -> "tuple[Figure, list[Axes]]":
    """A figure of `count` equal panels in rows of `across`; width and height: of one panel, in inches."""
    columns = min(count, across)
    rows = -(-count // columns)
    whole = figure(width * columns + 1.4, height * rows + 0.6)
    grid = whole.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[count:]:
        axes.remove()
    return whole, list(grid[:count])


def plain(label: str) -> str:
    """`label` as it is: a dollar sign in a setting must not start a formula."""
    return label.replace("$", r"\$")
