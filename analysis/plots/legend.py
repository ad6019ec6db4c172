"""A legend below the axes that nothing is cut from: as many columns as fit, long labels in several lines."""

from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

MARGIN = 0.1  # inches left free on either side


def below(figure: "Figure", entries: tuple[Sequence[Any], Sequence[str]], columns: int, **look: Any) -> "Legend":
    """Put the legend of `entries` (handles, labels) below the axes, in at most `columns`, and make the figure higher by it.

    Fewer columns where the labels are too long; where even one is too narrow for them, they are broken at their commas
    and spaces. look: further settings of Matplotlib's legend.
    """
    handles, labels = entries
    longest = max(map(len, labels), default=0)
    tries = [(count, longest) for count in range(min(columns, len(labels)), 1, -1)]
    tries += [(1, width) for width in range(max(longest, 1), 20, -5)] or [(1, 20)]
    for count, width in tries:
        broken = ["\n".join(wrap(label, width, break_long_words=True)) for label in labels]
        legend = figure.legend(handles, broken, loc="outside lower center", ncols=count, **look)
        box = legend.get_window_extent()
        if box.width <= figure.bbox.width - 2 * MARGIN * figure.dpi:
            break
        if (count, width) != tries[-1]:
            legend.remove()
    wide, high = figure.get_size_inches()
    figure.set_size_inches(wide, high + box.height / figure.dpi)
    return legend


def entries(axes: Sequence[Any]) -> tuple[list[Any], list[str]]:
    """Handles and labels of several axes, each label once."""
    found: dict[str, Any] = {}
    for one in axes:
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)
