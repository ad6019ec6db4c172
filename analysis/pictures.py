"""Figures drawn: PNG files for the page, from the records of the runs that they show."""

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from analysis.figures import figures
from analysis.files import read_lines
from analysis.load import Run
from analysis.rows import Row
from analysis.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 168  # 1.75 pixels for each of the page's: sharp on a fine screen and when enlarged


@dataclass(frozen=True)
class Picture:
    """A figure as a PNG: its file's name, what it shows, its width on the page in px, and its bytes."""

    name: str
    caption: str
    width: int
    png: bytes

    @property
    def uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


def pictures(table: Table, suffix: str) -> tuple[tuple[Picture, ...], list[str]]:
    """The figures of one table, drawn, and a note for each file of records that is damaged.

    `suffix` keeps the files of several tables apart.
    """
    metrics, damaged = _records((row.runs for row in table.shown), "metrics.jsonl")
    adaptive = [row for row in table.shown if row.adaptive]
    allocations, damaged_too = _records(map(_first_recorded, adaptive), "allocations.jsonl")
    found = tuple(
        Picture(f"{name}{suffix}.png", caption, round(96 * figure.get_figwidth()), _png(figure))
        for name, caption, figure in figures(table, metrics, allocations)
        if figure is not None
    )
    return found, damaged + damaged_too


def _png(figure: "Figure") -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI, facecolor="white")
    return file.getvalue()


def _first_recorded(row: Row) -> list[Run]:
    """The row's first run that recorded allocations, if any: the figures of ranks and scores show that one."""
    return [run for run in row.runs if (path := run.folder / "allocations.jsonl").is_file() and path.stat().st_size][:1]


def _records(groups: Iterable[Iterable[Run]], name: str) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """The records of the file `name` of every run, by run, and a note for each file with unreadable lines."""
    read = {run.name: read_lines(run.folder / name) for runs in groups for run in runs}
    notes = [
        f"{run}/{name}: {len(bad)} unreadable lines, the first is line {bad[0]}; the figures lack them."
        for run, (_, bad) in read.items()
        if bad
    ]
    return {run: records for run, (records, _) in read.items()}, notes
