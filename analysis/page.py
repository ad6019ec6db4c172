"""The page of a report and the files beside it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from analysis import cells, export
from analysis.across import across
from analysis.load import Run, state_counts
from analysis.notes import LEGEND, notes
from analysis.pictures import Picture, pictures
from analysis.tables import Table


@dataclass(frozen=True)
class Section:
    """What the page shows of one table: itself and the smaller ones below it, the notes on them, the figures."""

    table: Table
    grids: tuple[cells.Grid, ...]
    notes: tuple[str, ...]
    pictures: tuple[Picture, ...]


def write_report(out: Path, runs: Sequence[Run], found: Sequence[Table]) -> Path:
    """Write OUT/report/ with the page, its pictures and tables, replacing what is there; returns the page's path."""
    folder = out / "report"
    folder.mkdir(exist_ok=True)
    sections = [make_section(table, f"_{place}" if len(found) > 1 else "") for place, table in enumerate(found, 1)]
    over_tasks = [cells.across_grid(one) for one in across(found)]
    drawn = [picture for section in sections for picture in section.pictures]
    grids = [grid for section in sections for grid in section.grids] + over_tasks
    for picture in drawn:
        _write(folder / picture.name, picture.png)
    _write(folder / "tables.md", export.markdown(grids).encode())
    _write(folder / "tables.tex", export.latex(grids).encode())
    _write(folder / "index.html", _render(out.resolve().name, runs, sections, over_tasks).encode())
    for file in folder.glob("*.png"):  # pictures of an earlier report that this one does not show
        if file.name not in {picture.name for picture in drawn}:
            file.unlink()
    return folder / "index.html"


def make_section(table: Table, suffix: str) -> Section:
    """`suffix` keeps the pictures' files of several tables apart."""
    drawn, damaged = pictures(table, suffix)
    return Section(table, (cells.main_grid(table), *cells.grids(table)), (*notes(table), *damaged), drawn)


def _render(name: str, runs: Sequence[Run], sections: Sequence[Section], over_tasks: Sequence[cells.Grid]) -> str:
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("report.html.j2").render(
        name=name,
        sections=sections,
        across=over_tasks,
        counts=state_counts(runs),
        uncounted=[run for run in runs if run.state != "finished"],
        legend=LEGEND,
        link=lambda run: f"../{quote(run.name)}/",
    )


def _write(path: Path, content: bytes) -> None:
    """Atomically: a reader of an earlier report never sees half of a new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
