"""Rank maps as text for the terminal, with a row of blocks for each kind of module."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from analysis import formats

EIGHTHS = "▁▂▃▄▅▆▇█"
NONE = "·"  # rank 0
NARROW = 20  # columns that the cells have at least, however long the names are


def draw(kinds: Sequence[str], blocks: Sequence[str], ranks: NDArray[np.float64], width: int) -> list[str]:
    """The lines of a map: each module's rank as a bar in eighths of the largest, and each kind's mean.

    ranks: [kinds, blocks]; NaN: no module. width: the length of the longest line; blocks that do not fit are drawn
    below, under their own numbers.
    """
    top = float(np.nanmax(ranks))
    means = [formats.rank(round(float(np.nanmean(line)), 1)) for line in ranks]
    margin = max(len("mean"), *map(len, means))
    indent = min(max(map(len, kinds)), max(1, width - margin - NARROW))
    room = width - indent - 2 - margin - 2
    size = max([1, *(size for size in (2, 3) if (size + 1) * len(blocks) - 1 <= room)])
    gap = " " * (size > 1)
    fits = max(1, (room + len(gap)) // (size + len(gap)))
    lines = []
    for at in range(0, len(blocks), fits):
        part = slice(at, at + fits)
        of_part = min(fits, len(blocks) - at) * (size + len(gap)) - len(gap)
        ends = blocks[at], blocks[part][-1]
        head = gap.join(name.ljust(size)[:size] for name in blocks[part])
        if size == 1 or any(len(name) > size for name in blocks[part]):
            head = f"{ends[0]}{ends[1].rjust(of_part - len(ends[0]))}" if of_part > sum(map(len, ends)) else ends[0]
        last = at + fits >= len(blocks)
        lines.append(f"{'':{indent}}  {head[: max(of_part, len(ends[0]))]:{of_part}}" + f"  {'mean':>{margin}}" * last)
        for kind, line, mean in zip(kinds, ranks, means, strict=True):
            cells = gap.join(size * _bar(value, top) for value in line[part])
            name = kind if len(kind) <= indent else "…" + kind[1 - indent :]
            lines.append((f"{name:{indent}}  {cells}" + f"  {mean:>{margin}}" * last).rstrip())
    return lines


def _bar(rank: float, top: float) -> str:
    """One character; a module with any rank is never shown as one of rank 0."""
    if not math.isfinite(rank):
        return " "
    return EIGHTHS[max(1, round(len(EIGHTHS) * rank / top)) - 1] if rank > 0 else NONE
