"""Small SVG drawings inside the text of the page: the axis of one comparison, the scores of every seed, the cells of
one rank map."""

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from analysis import formats
from analysis.plots import style
from analysis.plots.forest import STYLES

LEVELS = 16  # colours of a map
AXIS = (240, 30)  # width and height of an axis, in px
MAP, LARGE = (128, 112), (240, 168)  # the largest size of a map's cells together, in px; of a map that stands alone
CELL = {False: 16, True: 28}  # the largest side of a cell, in px, by whether its map is large
SEEDS = (480, 24)  # width of the drawing of every seed and height of a row, in px
READABLE = (15, 12)  # a cell that holds its number, in px
NAMED = 9  # the height of a row that has a name, in px


def axis(kind: str, mean: float, interval: tuple[float, float] | None, margin: float | None, limit: float) -> str:
    """The axis from -limit to limit with its 0, the band ±margin, the interval and the mean, as in the forest plot.

    kind: of the verdict. Anything beyond the limit ends at the frame.
    """
    width, height = AXIS
    middle, colour = height / 2 - 4, STYLES[kind]["color"]

    def x(value: float) -> str:
        return _short(width / 2 + max(-1.0, min(1.0, value / limit)) * (width / 2 - 8))

    parts = []
    if margin:
        band = float(x(margin)) - float(x(-margin))
        parts.append(f'<rect x="{x(-margin)}" y="2" width="{band:.1f}" height="{2 * middle - 4:g}" fill="#dfe5ea"/>')
    parts.append(f'<path d="M8 {middle:g}H{width - 8}" stroke="#bbb"/>')
    parts.append(f'<path d="M{x(0)} 1V{2 * middle - 1:g}" stroke="#444"/>')
    if interval is not None:
        parts.append(f'<path d="M{x(interval[0])} {middle:g}H{x(interval[1])}" stroke="{colour}" stroke-width="3"/>')
    parts.append(_mark(kind, float(x(mean)), middle, colour))
    bound = formats.significant(limit)
    for place, anchor, text in ((8, "start", f"−{bound}"), (width / 2, "middle", "0"), (width - 8, "end", f"+{bound}")):
        parts.append(f'<text x="{place:g}" y="{height - 1}" text-anchor="{anchor}">{text}</text>')
    found = formats.metric(mean, "+") + (f", interval {formats.span(interval)}" if interval else ", no interval")
    return _svg(width, height, f"Difference {found}" + (f"; margin ±{margin:g}" if margin else ""), "axis", parts)


def seeds(rows: Sequence[tuple[str, Sequence[float], str]], title: str) -> str:
    """One row per method on a common axis, with a dot for every seed and a bar at the mean. rows: (name, scores,
    colour)."""
    width, height = SEEDS
    left = 16 + round(6.4 * max(len(name) for name, _, _ in rows))
    every = [score for _, scores, _ in rows for score in scores]
    low, high = min(every), max(every)
    span = (high - low) or 1.0

    def x(value: float) -> float:
        return left + 12 + (value - low) / span * (width - left - 24)

    bottom = height * len(rows)
    parts = [f'<path d="M{left} {bottom + 2}H{width}" stroke="#999"/>']
    for row, (name, scores, colour) in enumerate(rows):
        y = height * (row + 0.5)
        parts.append(f'<path d="M{left} {y:g}H{width}" stroke="#e2e2e2"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:g}" text-anchor="end">{escape(name)}</text>')
        mean = _short(x(sum(scores) / len(scores)))
        parts.append(f'<path d="M{mean} {y - 9:g}v18" stroke="{colour}" stroke-width="3"/>')
        parts += [f'<circle cx="{x(s):.1f}" cy="{y:g}" r="4.5" fill="{colour}" fill-opacity=".55"/>' for s in scores]
    for value, anchor in ((low, "start"), (high, "end")):
        end = left if anchor == "start" else width
        parts.append(f'<text x="{end}" y="{bottom + 16}" text-anchor="{anchor}">{formats.metric(value)}</text>')
    return _svg(width, bottom + 20, title, "seeds", parts)


def rank_cells(
    values: NDArray[np.float64],
    limits: tuple[float, float],
    palette: str,
    title: str,
    digits: int = 1,
    large: bool = False,
) -> str:
    """Cells of `values` [rows, columns], coloured over `limits`; NaN: no cell. If they are large enough, each shows its
    number. palette: a colour map of Matplotlib; digits: decimals for numbers below ten; large: the map stands alone."""
    rows, columns = values.shape
    wide, high = _cell(rows, columns, large)
    colours = levels(palette)
    place = np.clip((values - limits[0]) / (limits[1] - limits[0] or 1.0) * LEVELS, 0, LEVELS - 1)
    paths: dict[int, list[str]] = {}
    numbers = []
    for (row, column), value in np.ndenumerate(values):
        if not np.isfinite(value):
            continue
        level = int(place[row, column])
        paths.setdefault(level, []).append(f"M{wide * column} {high * row}h{wide}v{high}h-{wide}z")
        if wide >= READABLE[0] and high >= READABLE[1]:
            number = formats.rank(round(float(value), digits if abs(value) < 9.95 else 0) + 0.0).replace("-", "−")
            x, y = wide * (column + 0.5), high * (row + 0.5) + 3
            numbers.append(f'<text x="{x:g}" y="{y:g}" text-anchor="middle" fill="{colours[level][1]}">{number}</text>')
    parts = [f'<path fill="{colours[level][0]}" d="{"".join(cells)}"/>' for level, cells in sorted(paths.items())]
    return _svg(wide * columns, high * rows, title, "cells" + " large" * large, parts + numbers)


def row_names(names: Sequence[str], columns: int, large: bool = False) -> str:
    """The names of a map's rows, to the left of its cells; nothing if the rows are too low for them."""
    high = _cell(len(names), columns, large)[1]
    if high < NAMED:
        return ""
    width = 4 + round((6.6 if large else 5.3) * max(map(len, names)))
    texts = [
        f'<text x="{width - 3}" y="{high * (row + 0.5) + 3:g}" text-anchor="end">{escape(name)}</text>'
        for row, name in enumerate(names)
    ]
    return _svg(width, high * len(names), "Kinds of modules", "names" + " large" * large, texts)


def levels(palette: str) -> list[tuple[str, str]]:
    """LEVELS colours of one of Matplotlib's colour maps as #rrggbb, the lowest first, each with the ink to write on
    it."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    colours = [colormaps[palette](i / (LEVELS - 1)) for i in range(LEVELS)]
    return [(to_hex(colour), style.ink(*colour[:3])) for colour in colours]


def _cell(rows: int, columns: int, large: bool = False) -> tuple[int, int]:
    """Width and height of a cell, in px."""
    room = zip(LARGE if large else MAP, (columns, rows), strict=True)
    wide, high = (max(3, min(CELL[large], size // count)) for size, count in room)
    return wide, high


def _mark(kind: str, x: float, y: float, colour: str) -> str:
    """The shape of a verdict's kind, as in the forest plot: circle, diamond, hollow square, cross."""
    if kind == "better":
        return f'<circle cx="{x:g}" cy="{y:g}" r="5" fill="{colour}"/>'
    if kind == "equivalent":
        return f'<path d="M{x - 6:g} {y:g}l6 -6 6 6 -6 6z" fill="{colour}"/>'
    if kind == "undecided":
        place = f'x="{x - 4.5:g}" y="{y - 4.5:g}"'
        return f'<rect {place} width="9" height="9" fill="#fff" stroke="{colour}" stroke-width="2"/>'
    return f'<path d="M{x - 4:g} {y - 4:g}l8 8m0 -8l-8 8" stroke="{colour}" stroke-width="2"/>'


def _svg(width: float, height: float, title: str, name: str, parts: Sequence[str]) -> str:
    size = f'width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}"'
    return f'<svg class="{name}" role="img" aria-label="{escape(title)}" {size}>{"".join(parts)}</svg>'


def _short(value: float) -> str:
    return f"{value:.1f}"
