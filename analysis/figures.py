"""Every figure of a table with its caption, in the order of the page: a new one is one more `yield` in `figures`."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from analysis.files import read_lines
from analysis.plots import (
    agreement,
    budget,
    forest,
    learning_curves,
    learning_rates,
    pareto,
    rank_map,
    scores,
    trajectories,
)
from analysis.rows import Row
from analysis.tables import Table
from analysis.verdicts import MARGIN, unit_scale, verdicts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 168  # 1.75 pixels for each of the page's: sharp on a fine screen and when enlarged
Records = Mapping[str, Sequence[Mapping[str, Any]]]  # {run name: the records of one of its files}


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


def figures(table: Table, metrics: Records, allocations: Records) -> Iterator[tuple[str, str, "Figure | None"]]:
    """Name, caption and figure, None where there is nothing to draw.

    metrics, allocations: of the runs of `table.shown`, and of its adaptive rows.
    """
    rows = table.shown
    adaptive = [row for row in rows if row.adaptive]
    chosen = _chosen(table)
    margin = MARGIN if unit_scale(table) else None
    yield (
        "forest",
        "Every configuration against LoRA: mean difference over common seeds and its 95% BCa interval"
        + (f"; the band is ±{margin:g}." if margin else "."),
        forest.draw(verdicts(table), table.metric, margin),
    )
    yield (
        "learning_curves",
        f"Learning curves: {table.metric} on dev and training loss against the step, mean over seeds"
        + ("; thin: each seed." if len(rows) <= learning_curves.FEW_SEEDS else ".")
        + chosen,
        learning_curves.draw(table, rows, metrics),
    )
    for name, cost in pareto.COSTS.items():
        yield (
            name,
            f"What {name} buys: {table.metric} on {table.split} against it, every seed and their mean, with its 95% "
            "t interval where that fits the frame. The front: what nothing beats at its cost.",
            pareto.draw(table, cost),
        )
    yield (
        "learning_rates",
        f"Learning rates: best {table.metric} on dev over each method's grid, the chosen rate ringed.",
        learning_rates.draw(table),
    )
    yield (
        "budget",
        f"How the budget fell: mean rank per module after each allocation, of the first seed with records.{chosen}",
        budget.draw(table, adaptive, allocations),
    )
    yield (
        "agreement",
        "Whether the seeds agree on where the rank goes: correlation of their final maps, and its chance level.",
        agreement.draw(table, [row for row in table.rows if row.adaptive]),
    )
    yield (
        "trajectories",
        f"Rank trajectories: every module's rank from creation to the end, of the first seed with records.{chosen}",
        trajectories.draw(table, adaptive, allocations),
    )
    yield (
        "scores",
        "Scores at the last allocation, of the first seed with records. Thin: smallest to largest of a module; thick: the "
        f"middle half; mark: median.{chosen}",
        scores.draw(table, adaptive, allocations),
    )
    for row in adaptive:
        yield (
            f"rank_map_{row.configuration}",
            f"Where the rank went: final rank of every target module of {table.labels[row]}, mean over seeds.",
            rank_map.draw(row, table.labels[row]),
        )


def pictures(table: Table, suffix: str) -> tuple[tuple[Picture, ...], list[str]]:
    """The figures of one table, drawn, and a note for each file of records that is damaged.

    `suffix` keeps the files of several tables apart.
    """
    metrics, damaged = _records(table.shown, "metrics.jsonl")
    allocations, damaged_too = _records([row for row in table.shown if row.adaptive], "allocations.jsonl")
    found = tuple(
        Picture(f"{name}{suffix}.png", caption, round(96 * figure.get_figwidth()), _png(figure))
        for name, caption, figure in figures(table, metrics, allocations)
        if figure is not None
    )
    return found, damaged + damaged_too


def _chosen(table: Table) -> str:
    """The sentence of a caption that says which rows a figure of few shows, empty where it shows all."""
    rows = table.shown
    if len(rows) == len(table.rows):
        return ""
    words = " Of every method only the configuration that is best on dev."
    if len({row.method for row in table.rows}) > len(rows):
        words += f" LoRA and the {len(rows) - 1} best on dev of the others."
    return words


def _png(figure: "Figure") -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI, facecolor="white")
    return file.getvalue()


def _records(rows: Sequence[Row], name: str) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """The records of the file `name` of every run, by run, and a note for each file with unreadable lines."""
    read = {run.name: read_lines(run.folder / name) for row in rows for run in row.runs}
    notes = [
        f"{run}/{name}: {len(bad)} unreadable lines, the first is line {bad[0]}; the figures lack them."
        for run, (_, bad) in read.items()
        if bad
    ]
    return {run: records for run, (records, _) in read.items()}, notes
