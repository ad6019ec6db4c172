"""Labels beside points, placed so that none covers another label, a point or an error bar."""

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

SIDES = ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0))
DISTANCES = (8, 20, 34, 50, 68, 90, 115, 145)  # points; from the second on a thin line leads to the point


def place_labels(
    axes: "Axes", points: Sequence[tuple[float, float]], labels: Sequence[str], colours: Sequence[str]
) -> list["Annotation"]:
    """Write each of `labels` near its point (data coordinates) in its colour, inside the axes where possible.

    Greedy: of all sides at growing distances the first place that is free, else the one with the least overlap.
    Call it last: it reads the final sizes and freezes the layout.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    taken = _marks(axes)
    inside = axes.get_window_extent()
    placed = []
    for point, label, colour in zip(points, labels, colours, strict=True):
        tried = []
        for distance, side in product(DISTANCES, SIDES):
            note = _annotate(axes, point, label, colour, side, distance)
            box = text_box(note)
            # outside the axes counts like cover by another label
            cover = sum(_shared(box, other) for other in taken) + _shared(box, box) - _shared(box, inside)
            note.remove()
            tried.append((cover, distance, side))
            if cover < 1e-6:
                break
        _, distance, side = min(tried, key=lambda place: place[:2])
        placed.append(_annotate(axes, point, label, colour, side, distance))
        taken.append(text_box(placed[-1]))
    return placed


def text_box(note: "Annotation") -> "Bbox":
    """The box of the words in pixels, two pixels wider all round; the annotation's own extent includes its line."""
    from matplotlib.text import Text

    note.get_window_extent()  # brings the position up to date
    return Text.get_window_extent(note).padded(2)


def _annotate(
    axes: "Axes", point: tuple[float, float], label: str, colour: str, side: tuple[int, int], distance: float
) -> "Annotation":
    return axes.annotate(
        label,
        point,
        xytext=(side[0] * distance, side[1] * distance),
        textcoords="offset points",
        color=colour,
        ha={1: "left", 0: "center", -1: "right"}[side[0]],
        va={1: "bottom", 0: "center", -1: "top"}[side[1]],
        arrowprops={"arrowstyle": "-", "color": "#888888", "linewidth": 0.7} if distance > DISTANCES[0] else None,
    )


def _marks(axes: "Axes") -> list["Bbox"]:
    """Boxes in pixels around every marker and error bar of the axes."""
    from matplotlib.transforms import Bbox

    boxes = []
    for line in axes.get_lines():
        for x, y in axes.transData.transform(line.get_xydata()):
            boxes.append(Bbox.from_extents(x - 6, y - 6, x + 6, y + 6))
    for bars in axes.collections:
        for path in bars.get_paths():
            corners = axes.transData.transform(path.vertices)
            if np.isfinite(corners).all() and len(corners):
                low, high = corners[0], corners[-1]
                boxes.append(Bbox.from_extents(low[0] - 2, low[1], high[0] + 2, high[1]))
    return boxes


def _shared(one: "Bbox", other: "Bbox") -> float:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return max(0.0, float(width)) * max(0.0, float(height))
