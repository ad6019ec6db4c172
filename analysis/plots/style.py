"""Colours, lines and markers for the colour-blind and for grey print; figures, legends, long names."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from textwrap import wrap
from typing import TYPE_CHECKING, Any, ParamSpec

from analysis.rows import Row
from analysis.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure as Figure
    from matplotlib.legend import Legend

P = ParamSpec("P")
Records = Mapping[str, Sequence[Mapping[str, Any]]]  # {run name: the records of one of its files}

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
NAME_WIDTH = 40  # characters in a line of a row's name
LINE_HEIGHT, EXTRA_LINE = 0.34, 0.17  # inches for a row of a list, and for every further line of its name
MARGIN = 0.1  # inches left free on either side of a legend


def styled(draw: "Callable[P, Figure | None]") -> "Callable[P, Figure | None]":
    """Make `draw` use RC. Matplotlib, whose import takes half a second, is imported only when something is drawn."""

    @wraps(draw)
    def draw_styled(*args: P.args, **kwargs: P.kwargs) -> "Figure | None":
        import matplotlib

        with matplotlib.rc_context(RC):
            return draw(*args, **kwargs)

    return draw_styled


def styles(table: Table) -> dict[Row, dict[str, Any]]:
    """A colour, a line style and a marker for every row, the same in all figures of the table.

    If all rows are shown, every row has its own, else every kind of row, with those shown first; after eight the
    markers shift by one, so that colour and marker together are unique up to 64.
    """
    all_shown = len(table.shown) == len(table.rows)
    called = table.labels if all_shown else table.kinds
    names = list(dict.fromkeys(called[row] for row in [*table.shown, *table.rows]))
    return {row: style(names.index(called[row])) for row in table.rows}


def distinct_styles(table: Table, rows: Sequence[Row]) -> dict[Row, dict[str, Any]]:
    """The styles of `rows`, or new ones if two of these would share theirs (several ranks of one method)."""
    of_table = styles(table)
    if len({(of_table[row]["color"], of_table[row]["marker"]) for row in rows}) == len(rows):
        return {row: of_table[row] for row in rows}
    return {row: style(i) for i, row in enumerate(rows)}


def style(i: int) -> dict[str, Any]:
    """The colour, line style and marker of line number `i`."""
    return {
        "color": COLOURS[i % len(COLOURS)],
        "linestyle": LINES[i % len(LINES)],
        "marker": MARKERS[(i + i // len(COLOURS)) % len(MARKERS)],
    }


def ink(red: float, green: float, blue: float) -> str:
    """White or black, whichever stands out more on a colour of sRGB (0 to 1), by WCAG's relative luminance."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    return "white" if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] < 0.179 else "black"


def fits(row: Row, frame: tuple[float, float]) -> bool:
    """Whether the row has an interval that lies within the limits of its axis."""
    return row.half_width is not None and frame[0] <= row.mean - row.half_width <= row.mean + row.half_width <= frame[1]


def figure(width: float, height: float) -> "Figure":
    """An empty figure, sizes in inches, without pyplot's global state (and its second of import)."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def single(width: float, height: float) -> "tuple[Figure, Axes]":
    """A figure with one pair of axes."""
    whole = figure(width, height)
    return whole, whole.subplots()


def panels(count: int, width: float, height: float, across: int = 3) -> "tuple[Figure, list[Axes]]":
    """A figure of `count` equal panels in rows of `across`; width and height: of one panel, in inches."""
    columns = min(count, across)
    rows = -(-count // columns)
    whole = figure(width * columns + 1.4, height * rows + 0.6)
    grid = whole.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[count:]:
        axes.remove()
    return whole, list(grid[:count])


def listing(names: Sequence[str], height: float) -> "tuple[Figure, Axes]":
    """A figure with one line per name, the first on top; height: of everything but the lines, in inches."""
    lines = max((len(wrap(name, NAME_WIDTH)) for name in names), default=1)
    whole, axes = single(8.5, height + (LINE_HEIGHT + EXTRA_LINE * (lines - 1)) * len(names))
    axes.set_yticks(range(len(names)), list(map(wrapped, names)))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.locator_params(axis="x", nbins=6)  # more numbers would collide if long names leave little room
    return whole, axes


def plain(label: str) -> str:
    """`label` escaped for Matplotlib, so that a dollar sign in a setting does not start a formula."""
    return label.replace("$", r"\$")


def wrapped(name: str, width: int = NAME_WIDTH) -> str:
    """`name` in lines of at most `width` characters, split at its spaces but not at no-break spaces."""
    return plain("\n".join(wrap(name, width)).replace("\u00a0", " "))


def legend_below(figure: "Figure", axes: "Iterable[Axes]", columns: int, **options: Any) -> "Legend":
    """Put a legend below the axes, in at most `columns`, and increase the figure's height by it. Each label appears
    once.

    Wide labels get fewer columns, and are wrapped if even one column is too wide. options: those of Matplotlib's
    legend.
    """
    entries: dict[str, Any] = {}
    for each in axes:
        for handle, label in zip(*each.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    longest = max(map(len, entries), default=1)
    layouts = [(count, longest) for count in range(min(columns, len(entries)), 1, -1)]
    layouts += [(1, width) for width in range(longest, 20, -5)] or [(1, 20)]
    for count, width in layouts:
        labels = ["\n".join(wrap(label, width)) for label in entries]
        legend = figure.legend(entries.values(), labels, loc="outside lower center", ncols=count, **options)
        box = legend.get_window_extent()
        if box.width <= figure.bbox.width - 2 * MARGIN * figure.dpi:
            break
        if (count, width) != layouts[-1]:
            legend.remove()
    width_inches, height = figure.get_size_inches()
    figure.set_size_inches(width_inches, height + box.height / figure.dpi)
    return legend
