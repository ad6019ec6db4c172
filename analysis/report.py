"""The report: OUT/report/index.html, complete in itself, and beside it its figures (PNG) and tables (.md, .tex).

python analysis/report.py OUT
"""

import base64
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if __package__ in (None, ""):  # run as a script, sys.path[0] is analysis/: the repository's root belongs there
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from analysis import cells, export
from analysis.across import across
from analysis.load import FolderError, Run, read_lines, read_runs
from analysis.plots import (
    agreement,
    budget,
    forest,
    intruders,
    learning_curves,
    learning_rates,
    pareto,
    rank_map,
    scores,
    similarity,
    spectrum,
    trajectories,
)
from analysis.tables import Row, Table, tables
from analysis.verdicts import MARGIN, unit_scale, verdicts

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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


@dataclass(frozen=True)
class Section:
    """A table with the smaller ones below it, its pictures, and the notes that belong below it."""

    table: Table
    grids: tuple[cells.Grid, ...]
    pictures: tuple[Picture, ...]
    notes: tuple[str, ...]


def load(out: Path) -> tuple[list[Run], list[Table]]:
    """The runs under `out` and the tables of the finished ones; FolderError when there is none."""
    runs = read_runs(out)
    if not any(run.state == "finished" for run in runs):
        raise FolderError(f"{out} holds no finished run: {state_counts(runs)}.")
    return runs, tables(runs)


def state_counts(runs: Sequence[Run]) -> str:
    """`6 finished, 1 failed`."""
    states = [run.state for run in runs]
    return ", ".join(
        f"{states.count(state)} {state}" for state in sorted(set(states), key=lambda s: (s != "finished", s))
    )


def write_report(out: Path, runs: Sequence[Run], found: Sequence[Table]) -> Path:
    """Write OUT/report/ with the page, its pictures and tables, replacing what is there; returns the page's path."""
    import jinja2

    folder = out / "report"
    folder.mkdir(exist_ok=True)
    sections = [make_section(table, f"_{place}" if len(found) > 1 else "") for place, table in enumerate(found, 1)]
    pictures = [picture for section in sections for picture in section.pictures]
    for picture in pictures:
        _write(folder / picture.name, picture.png)
    over_tasks = [cells.across_grid(one) for one in across(found)]
    grids = [grid for section in sections for grid in (cells.main_grid(section.table), *section.grids)] + over_tasks
    _write(folder / "tables.md", export.markdown(grids).encode())
    _write(folder / "tables.tex", export.latex(grids).encode())
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.get_template("report.html.j2").render(
        name=out.resolve().name,
        sections=sections,
        across=over_tasks,
        counts=state_counts(runs),
        uncounted=[run for run in runs if run.state != "finished"],
        cells=cells,
        link=lambda run: f"../{quote(run.name)}/",
    )
    _write(folder / "index.html", page.encode())
    for file in folder.glob("*.png"):  # pictures of an earlier report that this one does not show
        if file.name not in {picture.name for picture in pictures}:
            file.unlink()
    return folder / "index.html"


def make_section(table: Table, suffix: str) -> Section:
    """The figures and notes of one table; `suffix` keeps the files of several tables apart."""
    rows = table.shown
    adaptive = [row for row in rows if row.adaptive]
    metrics, damaged = _records(rows, "metrics.jsonl")
    allocations, damaged_too = _records(adaptive, "allocations.jsonl")
    chosen = "" if len(rows) == len(table.rows) else " Of every method only the configuration that is best on dev."
    if len({row.method for row in table.rows}) > len(rows):
        chosen += f" LoRA and the {len(rows) - 1} best on dev of the others."
    margin = MARGIN if unit_scale(table) else None
    drawn = [
        _picture(
            f"forest{suffix}",
            "Every configuration against LoRA: mean difference over common seeds and its 95% BCa interval"
            + (f"; the band is ±{margin:g}." if margin else "."),
            forest.draw(verdicts(table), table.metric, margin),
        ),
        _picture(
            f"learning_curves{suffix}",
            f"Learning curves: {table.metric} on dev and training loss against the step. Thick: mean over seeds; "
            f"thin: each seed.{chosen}",
            learning_curves.draw(table, rows, metrics),
        ),
        *(
            _picture(
                f"{name}{suffix}",
                f"What {name} buys: {table.metric} on {table.split} against it; dots are seeds, bars 95% t intervals "
                "of their mean (few seeds: wider than the frame). Grey: the front, which nothing beats at its cost.",
                pareto.draw(table, cost),
            )
            for name, cost in pareto.COSTS.items()
        ),
        _picture(
            f"learning_rates{suffix}",
            f"Learning rates: best {table.metric} on dev over each method's grid, the chosen rate ringed.",
            learning_rates.draw(table),
        ),
        _picture(
            f"budget{suffix}",
            f"How the budget fell: mean rank per module after each allocation.{chosen}",
            budget.draw(table, adaptive, allocations),
        ),
        _picture(
            f"agreement{suffix}",
            "Whether the seeds agree on where the rank goes: correlation of their final maps, and its chance level.",
            agreement.draw(table, [row for row in table.rows if row.adaptive]),
        ),
        _picture(
            f"trajectories{suffix}",
            f"Rank trajectories: every module's rank from creation to the end, one seed each.{chosen}",
            trajectories.draw(table, adaptive, allocations),
        ),
        _picture(
            f"scores{suffix}",
            "Scores at the last allocation, one seed each. Thin: smallest to largest of a module; thick: the "
            f"middle half; mark: median.{chosen}",
            scores.draw(table, adaptive, allocations),
        ),
        *(
            _picture(
                f"rank_map{suffix}_{row.configuration}",
                f"Where the rank went: final rank of every target module of {table.labels[row]}, mean over seeds.",
                rank_map.draw(row, table.labels[row]),
            )
            for row in adaptive
        ),
        _picture(
            f"spectrum{suffix}",
            "Singular values of ΔW: median over modules and seeds, the middle half shaded; beyond a module's rank they are 0.",
            spectrum.draw(table),
        ),
        _picture(
            f"similarity{suffix}",
            "Whether two runs changed the weights in the same directions: φ(i, j) of their leading i and j singular "
            "vectors of ΔW (1: one subspace lies in the other), and what random directions would share.",
            similarity.draw(table),
        ),
        _picture(
            f"intruders{suffix}",
            "Intruder dimensions: leading left singular vectors of W + ΔW that are unlike every one of W's.",
            intruders.draw(table),
        ),
    ]
    pictures = tuple(picture for picture in drawn if picture is not None)
    return Section(table, tuple(cells.grids(table)), pictures, (*cells.notes(table), *damaged, *damaged_too))


def main(arguments: Sequence[str], show: bool = False) -> int:
    """`report.py OUT` and, with show=True, `compare.py OUT`; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        getattr(stream, "reconfigure", lambda **_: None)(errors="replace")  # a terminal without ± or →
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(f"usage: python analysis/{'compare' if show else 'report'}.py RUNS_FOLDER", file=sys.stderr)
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    out = Path(arguments[0])
    try:
        runs, found = load(out)
        if show:
            print(as_text(runs, found), end="\n\n", flush=True)
        page = write_report(out, runs, found)
    except (FolderError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(page.resolve())
    return 0


def as_text(runs: Sequence[Run], found: Sequence[Table]) -> str:
    """Everything for the terminal: the tables, the runs that do not count with their reasons, the legend."""
    parts = [cells.as_text(table) for table in found]
    parts += [cells.grid_text(cells.across_grid(one)) for one in across(found)]
    uncounted = [f"  {run.name}: {run.state}, {run.reason}" for run in runs if run.state != "finished"]
    if uncounted:
        parts.append("\n".join([f"Not counted ({state_counts(runs)}):", *uncounted]))
    return "\n\n\n".join([*parts, "\n".join(cells.LEGEND)])


def _picture(name: str, caption: str, figure: "Figure | None") -> Picture | None:
    if figure is None:
        return None
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=144, facecolor="white")
    return Picture(f"{name}.png", caption, round(96 * figure.get_figwidth()), file.getvalue())


def _records(rows: Sequence[Row], name: str) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """The records of the file `name` of every run, by run, and a note for each file with unreadable lines."""
    read = {run.name: read_lines(run.folder / name) for row in rows for run in row.runs}
    notes = [
        f"{run}/{name}: {len(bad)} unreadable lines, the first is line {bad[0]}; the figures lack them."
        for run, (_, bad) in read.items()
        if bad
    ]
    return {run: records for run, (records, _) in read.items()}, notes


def _write(path: Path, content: bytes) -> None:
    """Atomically: a reader of an earlier report never sees half of a new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
