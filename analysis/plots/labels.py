"""Labels beside points, placed so that none covers another label, a point, an error bar or a leading line."""

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

Boxes = NDArray[np.float64]  # [n, 4]: left, bottom, right, top in pixels
SIDES = ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0), (1, 0.5), (1, -0.5), (-1, 0.5),
         (-1, -0.5))  # fmt: skip
DISTANCES = (8, 20, 34, 50, 68, 90, 115, 145, 180)  # points; from the second on a thin line leads to the point
PLACES = [(side, distance) for distance, side in product(DISTANCES, SIDES)]  # the nearest first
PAD = 2  # pixels around the words


def place_labels(
    axes: "Axes",
    points: Sequence[tuple[float, float]],
    labels: Sequence[str],
    colours: Sequence[str],
    size: float | None = None,
) -> list["Annotation"]:
    """Write each of `labels` near its point (data coordinates) in its colour, inside the axes where possible.

    Greedy: of all sides at growing distances the first place that is free, else the one with the least overlap. size:
    of the letters, in points. Call it last: it reads the final sizes and freezes the layout.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    marks, words, lines = _marks(axes), np.empty((0, 4)), np.empty((0, 4))
    inside = np.array([axes.get_window_extent().extents])
    placed = []
    for point, label, colour in zip(points, labels, colours, strict=True):
        note = _annotate(axes, point, label, colour, PLACES[0], size)
        width, height = text_box(note).size
        note.remove()
        at = np.asarray(axes.transData.transform(point), dtype=np.float64)
        boxes = _candidates(at, width, height, figure.dpi / 72)
        leads = [
            _lead(at, box) if distance > DISTANCES[0] else lines[:0]
            for box, (_, distance) in zip(boxes, PLACES, strict=True)
        ]
        # outside the axes counts like cover by another label
        cover = _shared(boxes, np.concatenate([marks, words, lines])) + width * height - _shared(boxes, inside)
        cover += np.array([_shared(lead, words).sum() for lead in leads])
        best = int(np.argmin(np.where(cover < 1e-6, 0.0, cover)))  # the first of equals
        placed.append(_annotate(axes, point, label, colour, PLACES[best], size))
        words, lines = np.concatenate([words, boxes[best : best + 1]]), np.concatenate([lines, leads[best]])
    return placed


def text_box(note: "Annotation") -> "Bbox":
    """The box of the words in pixels, PAD wider all round; the annotation's own extent includes its line."""
    from matplotlib.text import Text

    note.get_window_extent()  # brings the position up to date
    return Text.get_window_extent(note).padded(PAD)


def _annotate(
    axes: "Axes",
    point: tuple[float, float],
    label: str,
    colour: str,
    place: tuple[tuple[float, float], int],
    size: float | None,
) -> "Annotation":
    (x, y), distance = place
    return axes.annotate(
        label,
        point,
        xytext=(x * distance, y * distance),
        textcoords="offset points",
        color=colour,
        fontsize=size,
        ha=("right", "center", "left")[int(np.sign(x)) + 1],
        va="bottom" if y >= 1 else "top" if y <= -1 else "center",
        arrowprops={"arrowstyle": "-", "color": "#888888", "linewidth": 0.6} if distance > DISTANCES[0] else None,
    )


def _candidates(at: NDArray[np.float64], width: float, height: float, pixels: float) -> Boxes:
    """The box of the words at every one of PLACES around the point `at` [2]; pixels: of a point (1/72 inch)."""
    x, y = (np.array([side[i] * distance for side, distance in PLACES]) * pixels + at[i] for i in (0, 1))
    across, up = (np.array([side[i] for side, _ in PLACES]) for i in (0, 1))
    width, height = width - 2 * PAD, height - 2 * PAD
    left = x - width * (1 - np.sign(across)) / 2
    bottom = y - height * (1 - np.trunc(up)) / 2
    return np.stack([left - PAD, bottom - PAD, left + width + PAD, bottom + height + PAD], axis=1)


def _lead(at: NDArray[np.float64], box: NDArray[np.float64]) -> Boxes:
    """Small boxes along the line from the point to the nearest edge of the words."""
    end = np.clip(at, box[:2], box[2:])
    middle = at + np.linspace(0.25, 0.9, 8)[:, None] * (end - at)
    return np.concatenate([middle - 1, middle + 1], axis=1)


def _marks(axes: "Axes") -> Boxes:
    """Boxes around every marker and error bar of the axes."""
    boxes = [
        (x - 6, y - 6, x + 6, y + 6)
        for line in axes.get_lines()
        for x, y in axes.transData.transform(line.get_xydata())
    ]
    for bars in axes.collections:
        for path in bars.get_paths():
            corners = axes.transData.transform(path.vertices)
            if np.isfinite(corners).all() and len(corners):
                low, high = corners[0], corners[-1]
                boxes.append((low[0] - 2, low[1], high[0] + 2, high[1]))
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def _shared(boxes: Boxes, others: Boxes) -> NDArray[np.float64]:
    """The area of each of `boxes` [n, 4] that `others` cover, counted once for each of them."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return np.asarray(np.prod(np.maximum(high - low, 0.0), axis=2).sum(axis=1))
