"""Rows' names beside a figure, long ones in several lines: what is left of its width belongs to the marks."""

from collections.abc import Sequence
from textwrap import wrap

from analysis.plots import style

WIDTH = 40  # characters in a line
SINGLE, MORE = 0.34, 0.17  # inches that a row takes, and every line of its name after the first


def broken(name: str, width: int = WIDTH) -> str:
    """`name` in lines of at most `width` characters, broken at its spaces, but for no-break ones, where it can be."""
    return style.plain("\n".join(wrap(name, width)).replace("\u00a0", " "))


def row_height(names: Sequence[str]) -> float:
    """Inches for each of rows with these names, once they are broken."""
    return SINGLE + MORE * (max((len(wrap(name, WIDTH)) for name in names), default=1) - 1)
