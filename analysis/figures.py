"""Every figure of a table with its caption, in the order of the page. To add one, add a `yield` to `figures`."""

import base64
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adarank.runs import allocations as allocation_files
from adarank.runs.files import ALLOCATIONS, METRICS, read_lines
from analysis.load import Run
from analysis.plots import (
    agreement,
    budget,
    forest,
    forgetting,
    intruders,
    learning_curves,
    learning_rates,
    orthogonality,
    pareto,
    prefixes,
    profile,
    pruning,
    rank_map,
    scores,
    similarity,
    spectrum,
    style,
    trajectories,
)
from analysis.rows import Row
from analysis.tables import Table
from analysis.verdicts import Verdict, across_tasks

DPI = 168  # 1.75 pixels per page pixel, which is sharp on high-resolution screens and when enlarged
FIRST = ("learning_curves", "parameters")  # the figures that the page shows before the reader asks for the others
LISTED = 60  # the most configurations for a figure with one line per configuration
Reader = Callable[[Path], tuple[list[dict[str, Any]], list[int]]]


@dataclass(frozen=True)
class Picture:
    """A figure as files: their name without an ending, the caption, width and height on the page in px, the bytes."""

    name: str
    caption: str
    width: int
    height: int
    png: bytes
    svg: bytes

    @property
    def files(self) -> dict[str, bytes]:
        return {f"{self.name}.png": self.png, f"{self.name}.svg": self.svg}

    @property
    def first(self) -> bool:
        """Whether the page shows it at once."""
        return self.name.startswith(FIRST)

    @property
    def title(self) -> str:
        """A few words for a list: `learning curves`, `rank map`."""
        words = self.name.rstrip("0123456789").rstrip("_").replace("_", " ")
        return "rank map" if words.startswith("rank map") else words

    @property
    def uri(self) -> str:
        """The smaller of the two files as a data URI."""
        kind, content = min(("svg+xml", self.svg), ("png", self.png), key=lambda file: len(file[1]))
        return f"data:image/{kind};base64," + base64.b64encode(content).decode()


def render_figures(table: Table, judged: Sequence[Verdict], suffix: str) -> tuple[tuple[Picture, ...], list[str]]:
    """The figures of one table, and one note per damaged file of records.

    judged: the verdicts on it; suffix: distinguishes the files of several tables.
    """
    metrics, damaged = _read_records((row.runs for row in table.shown), METRICS, read_lines)
    adaptive = [row for row in table.shown if row.adaptive]
    allocations, more = _read_records(map(_first_with_records, adaptive), ALLOCATIONS, allocation_files.read)
    pictures = tuple(
        _picture(f"{name}{suffix}", caption, figure)
        for name, caption, figure in figures(table, judged, metrics, allocations)
        if figure is not None
    )
    return pictures, damaged + more


def render_across(tables: Sequence[Table]) -> tuple[Picture, ...]:
    """The performance profile of each group of tasks that is large enough for one."""
    groups = across_tasks(tables)
    drawn = [(over, figure) for over in groups if (figure := profile.draw(over)) is not None]
    return tuple(
        _picture(
            f"profile_{i}" if len(drawn) > 1 else "profile",
            "Performance profile: the share of pairs in which a configuration beats LoRA by more than τ. "
            f"{over.title}.",
            figure,
        )
        for i, (over, figure) in enumerate(drawn, 1)
    )


def figures(
    table: Table, judged: Sequence[Verdict], metrics: style.Records, allocations: style.Records
) -> Iterator[tuple[str, str, "style.Figure | None"]]:
    """Name, caption and figure, or None if there is nothing to draw.

    judged: the verdicts on the table; metrics: the records of the runs of `table.shown`; allocations: those of its
    adaptive rows, ranks as {module: rank}.
    """
    rows = table.shown
    adaptive = [row for row in rows if row.adaptive]
    chosen = _selection(table)
    tuned = " Only the best learning rate on dev is shown." if len(table.tuned) < len(table.rows) else ""
    listed = table.tuned if len(table.tuned) <= LISTED else rows
    labels = {table.labels[row] for row in listed}
    selection = tuned if len(table.tuned) <= LISTED else chosen
    margin = judged[0].margin if judged else None
    caption = (
        "The comparisons of the family: mean difference over common seeds, and its interval, which holds together "
        "with all "
        "others" + (f"; the band is ±{margin:g}." if margin else ".") + selection
    )
    yield "forest", caption, forest.draw([v for v in judged if v.comparison.label in labels], table.metric, margin)
    caption = (
        f"Learning curves: {table.metric} on dev and training loss over training steps, mean over seeds; band: its 95% "
        f"t interval, or the range of fewer than {learning_curves.FEWEST} seeds.{chosen}"
    )
    yield "learning_curves", caption, learning_curves.draw(table, rows, metrics)
    for name, cost in pareto.COSTS.items():
        caption = (
            f"{table.metric} on {table.split} against {name}: every seed and the mean, with its 95% t interval where "
            f"it fits the frame. Pareto front: no other configuration is both cheaper and better.{tuned}"
        )
        yield name, caption, pareto.draw(table, cost)
    caption = f"Learning rates: {table.metric} on dev over each method's grid, the chosen rate circled."
    yield "learning_rates", caption, learning_rates.draw(table)
    caption = "Accuracy against rank: the first triplets of one run, mean over seeds, and runs tuned for each rank."
    yield "prefix_ranks", caption, prefixes.draw(table)
    caption = (
        "The cost of pruning by each score and by measured ablations (oracle, oracle_absolute, worst_first): dev loss "
        "above that of the unpruned model, mean over the runs of the first measured configuration (intervals: table)."
    )
    yield "pruning", caption, pruning.draw(table)
    caption = (
        f"The budget during training: mean rank per module after each allocation, first seed with records.{chosen}"
    )
    yield "budget", caption, budget.draw(table, adaptive, allocations)
    caption = (
        "Whether seeds agree on where the rank goes: correlation of their final rank maps, and its chance level."
        + selection
    )
    yield "agreement", caption, agreement.draw(table, list(filter(rank_map.has_map, listed)))
    caption = f"Rank trajectories: every module's rank from creation to the end, first seed with records.{chosen}"
    mapped = list(filter(rank_map.has_map, rows))
    yield "trajectories", caption, trajectories.draw(table, mapped, allocations)
    caption = (
        "Scores at the last recorded allocation, first seed with records. Thin: smallest to largest score of a module; "
        f"thick: the middle half; marker: median.{chosen}"
    )
    yield "scores", caption, scores.draw(table, adaptive, allocations)
    caption = (
        "Whether the factors stay orthonormal: ‖AAᵀ − I‖ over training steps, mean over all P and Q and the seeds."
        + chosen
    )
    yield "orthogonality", caption, orthogonality.draw(table, rows, metrics)
    shades = rank_map.shared(mapped)
    for row in mapped:
        caption = f"Where the rank went: final rank of every target module of {table.labels[row]}, mean over seeds."
        yield f"rank_map_{row.configuration}", caption, rank_map.draw(row, table.labels[row], shades)
    if (pair := rank_map.to_compare(mapped)) is not None:
        label = f"{table.labels[pair[0]]} − {table.labels[pair[1]]}"
        caption = f"Where two methods differ in rank: {label}, mean over seeds."
        yield "rank_difference", caption, rank_map.draw_difference(*pair, label)
    caption = "Singular values of ΔW: median over modules and seeds, the middle half shaded."
    yield "spectrum", caption, spectrum.draw(table)
    caption = (
        "Whether two runs changed the weights in the same directions: φ(i, j) of their leading i and j singular "
        "vectors of ΔW (1: one subspace contains the other), and the same for random directions."
    )
    yield "similarity", caption, similarity.draw(table)
    caption = "Intruder dimensions: leading left singular vectors of W + ΔW that are unlike all of W's."
    yield "intruders", caption, intruders.draw(table)
    caption = (
        f"Learning against forgetting: {table.metric} on {table.split} against the base model's loss of ability, means "
        "over the seeds; a line joins the learning rates of one method."
    )
    yield "forgetting", caption, forgetting.draw(table)


def _selection(table: Table) -> str:
    """The sentence of a caption that says which rows a figure for few rows shows, empty if it shows all."""
    rows = table.shown
    if len(rows) == len(table.rows):
        return ""
    words = " Of every kind only the configuration that is best on dev."
    if len(set(table.kinds.values())) > len(rows):
        words += f" LoRA and the {len(rows) - 1} best on dev of the others."
    return words


def _picture(name: str, caption: str, figure: "style.Figure") -> Picture:
    import matplotlib

    png, svg = io.BytesIO(), io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):  # the same figure always gives the same bytes
        figure.savefig(png, format="png", dpi=DPI, facecolor="white")
        figure.set_layout_engine("none")  # the layout is final; computing it takes a third of the time
        figure.savefig(svg, format="svg", dpi=DPI, facecolor="white", metadata={"Date": None})
    width, height = figure.get_size_inches()
    return Picture(name, caption, round(96 * width), round(96 * height), png.getvalue(), svg.getvalue())


def _first_with_records(row: Row) -> list[Run]:
    """The row's first run that recorded allocations, if any: the figures of ranks and scores show that one."""
    return [run for run in row.runs if (path := run.folder / ALLOCATIONS).is_file() and path.stat().st_size][:1]


def _read_records(
    groups: Iterable[Iterable[Run]], name: str, read: Reader
) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """The records of the file `name` by run, and a note for each file with unreadable lines."""
    contents = {run.name: read(run.folder / name) for runs in groups for run in runs}
    notes = [
        f"{run}/{name}: {len(bad)} lines cannot be read, the first is line {bad[0]}; the figures leave them out."
        for run, (_, bad) in contents.items()
        if bad
    ]
    return {run: records for run, (records, _) in contents.items()}, notes
