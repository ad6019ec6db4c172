"""The report: OUT/report/index.html, one self-contained page, with its figures (PNG) and tables (.md, .tex) as files.

python analysis/report.py OUT
"""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

if __package__ in (None, ""):  # run as a script, sys.path[0] is analysis/: the repository's root belongs there
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from adarank.runs.files import write_bytes
from analysis import claims, export, formats
from analysis.claims import Declared
from analysis.fairness import notes
from analysis.figures import Picture, render_figures
from analysis.format_table import TextTable, across_tables, format_table, further_tables, verdict_table
from analysis.load import FolderError, Run, read_runs, state_counts
from analysis.tables import Table, tables
from analysis.verdicts import Family, family

WIDTH = 100  # characters of a line where there is no terminal
LEGEND = (
    "± is the half-width of a 95% t interval of the mean over the n seeds; one seed gives no interval.",
    "The metric is measured on test with the last checkpoint (metric.test_last), or on dev where there is no test split. "
    "The value at the checkpoint that is best on dev has a column of its own: adaptive methods choose it among fewer "
    "checkpoints than fixed ones. Runs that have no test value of the last checkpoint are judged by the best.",
    "mean rank: per module, from creation to the end. triplets: kept at the end, all modules together.",
    "kept: parameters a finished model needs beyond its frozen base, head included; in full fine-tuning all of them.",
    "step: median over seeds; ÷ LoRA: relative to the LoRA row with the same rank and most settings in common.",
    "peak: the largest peak memory of the seeds. – means that there is no such number.",
    "interval: of the mean paired difference (one seed of both methods), by Student's t. The intervals of a family hold "
    "all together in 95% of families without any difference: each is computed at 0.05 divided by the number of "
    "comparisons. spread: paired, or pooled over all methods of the table for at most 5 pairs.",
    "A verdict is read off that interval. It excludes 0: one method is better. It lies within the margin, and an assay "
    "shows that the task responds to rank: equivalent. Neither: undecided, with the further seeds that the test needs "
    "to find the observed difference (or the margin, if larger) four times in five. Fewer than 3 pairs decide nothing.",
    "p: of the paired t test, corrected like the interval. sign flip: exact two-sided p of the test that assumes no "
    "distribution, not corrected; with n pairs it cannot go below 2/2ⁿ.",
    "P(better): the share of pairs won, ties half, with Wilson's interval. g: Hedges' g, paired. detectable: the true "
    "difference that the test would find four times in five.",
    "Of several learning rates of one configuration only the best on dev is compared, at its own best rate.",
    "budget: triplets of all modules together, at creation, averaged over the steps, at the end; parameters as in "
    "kept; in brackets relative to the LoRA row. A configuration may match LoRA's in one count and not in the others.",
    "within a point of the best: the range of learning rates around the best one whose dev value is at most 0.01 below "
    "its. mean over log rate: the area under the dev values over the logarithm of the rate, divided by its width.",
)


@dataclass(frozen=True)
class Report:
    """What a folder of runs holds: its runs, the tables of the finished ones, the verdicts on them, and the claims that
    were declared before the runs, if any were."""

    runs: list[Run]
    tables: list[Table]
    family: Family
    declared: Declared | None


class Section(NamedTuple):
    """What the page shows of one table: the table and the smaller ones below it, the notes on them, the figures."""

    table: Table
    tables: tuple[TextTable, ...]
    notes: tuple[str, ...]
    pictures: tuple[Picture, ...]


def load(out: Path) -> Report:
    """The report on the runs under `out`. Raises FolderError when none is finished or its claims cannot be read."""
    try:
        declared = claims.load(out)
    except claims.ClaimsError as error:
        raise FolderError(f"{error}.") from None
    runs = read_runs(out, declared.claims.checkpoint if declared else "last")
    if not any(run.state == "finished" for run in runs):
        raise FolderError(f"{out} holds no finished run: {state_counts(runs)}.")
    found = tables(runs)
    return Report(runs, found, family(found, declared.claims if declared else None), declared)


def as_text(report: Report, width: int = WIDTH) -> str:
    """For the terminal: the verdicts first, then the tables, the runs that do not count, how to read the tables. No line
    is longer than `width`."""
    parts = [_declaration(report), *(export.wrap(line, width) for line in assay_lines(report))]
    verdicts = [
        table
        for table, judged in zip(report.tables, report.family.verdicts, strict=True)
        for table in verdict_table(table, report.family, judged)
    ]
    parts += [export.plain(table, width) for table in verdicts]
    parts += [table_text(report, i, width) for i in range(len(report.tables))]
    parts += [export.plain(table, width) for table in across_tables(report.tables)]
    uncounted = [export.wrap(f"{run.name}: {run.state}, {run.reason}", width, "  ") for run in _uncounted(report)]
    if uncounted:
        parts.append("\n".join([f"Not counted ({state_counts(report.runs)}):", *uncounted]))
    return "\n\n\n".join([*parts, "\n".join(export.wrap(line, width) for line in LEGEND)])


def table_text(report: Report, place: int, width: int = WIDTH) -> str:
    """The table number `place`, the smaller tables below it and the notes on them."""
    table, judged = report.tables[place], report.family.verdicts[place]
    every = (format_table(table), *further_tables(table, judged, report.declared is not None))
    parts = [export.plain(text_table, width) for text_table in every]
    return "\n\n".join([*parts, "\n".join(export.wrap(line, width) for line in notes(table))])


def assay_lines(report: Report) -> list[str]:
    """For each table whether its task responds to what the methods differ in, as far as an assay says."""
    lines = []
    for table, assays in zip(report.tables, report.family.assays, strict=True):
        for assay in assays:
            found = f"{assay.label} {formats.metric(assay.estimate.mean, '+')} {formats.span(assay.interval)}"
            if assay.shows:
                lines.append(f"{table.title}: the assay shows ({found}).")
            else:
                lines.append(f"{table.title}: this task does not respond to rank ({found}); nothing is called equivalent.")
        if not assays:
            lines.append(
                f"{table.title}: no assay (LoRA at two ranks, or allocator=global_bottom) shows that the task responds "
                "to rank, so nothing is called equivalent."
            )
    return lines


def write_report(out: Path, report: Report) -> Path:
    """Write OUT/report/ (page, pictures, tables), replacing an earlier report; returns the page's path."""
    folder = out / "report"
    folder.mkdir(exist_ok=True)
    sections = []
    for i, (table, judged) in enumerate(zip(report.tables, report.family.verdicts, strict=True), 1):
        pictures, damaged = render_figures(table, judged, f"_{i}" if len(report.tables) > 1 else "")
        text_tables = (
            *verdict_table(table, report.family, judged),
            format_table(table),
            *further_tables(table, judged, report.declared is not None),
        )
        sections.append(Section(table, text_tables, (*notes(table), *damaged), pictures))
    across = across_tables(report.tables)
    every_table = [table for section in sections for table in section.tables] + across
    files = {picture.name: picture.png for section in sections for picture in section.pictures}
    for name, png in files.items():
        write_bytes(folder / name, png)
    write_bytes(folder / "tables.md", export.markdown(every_table).encode())
    write_bytes(folder / "tables.tex", export.latex(every_table).encode())
    write_bytes(folder / "index.html", _render(out.resolve().name, report, sections, across).encode())
    for file in folder.glob("*.png"):  # pictures of an earlier report that this one does not show
        if file.name not in files:
            file.unlink()
    return folder / "index.html"


def main(arguments: Sequence[str], show: bool = False) -> int:
    """`report.py OUT` and, with show=True, `compare.py OUT`; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        getattr(stream, "reconfigure", lambda **_: None)(errors="replace")  # a terminal without ± or →
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(f"usage: python analysis/{'compare' if show else 'report'}.py RUNS_FOLDER", file=sys.stderr)
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    out = Path(arguments[0])
    try:
        report = load(out)
        if show:
            print(as_text(report, shutil.get_terminal_size((WIDTH, 24)).columns), end="\n\n", flush=True)
        page = write_report(out, report)
    except (FolderError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(page.resolve())
    return 0


def _declaration(report: Report) -> str:
    """Whether the comparisons were declared before the runs."""
    if report.declared is None:
        return "Verdicts. Not declared beforehand: each method against LoRA, corrected together."
    declared = report.declared
    lines = [f"Verdicts on the claims of {declared.study}, declared {declared.declared} (hash {declared.hash[:12]})."]
    lines += [
        f"The claims were changed {declared.declared} after {change.runs} runs; earlier hash {change.hash[:12]}."
        for change in declared.changes
    ]
    lines += [
        f"Declared and not run yet: {claim.contrast.name} on {claim.task}"
        + (f" at budget {claim.rank}." if claim.rank is not None else ".")
        for claim in report.family.missing
    ]
    return "\n".join(lines)


def _uncounted(report: Report) -> list[Run]:
    return [run for run in report.runs if run.state != "finished"]


def _render(name: str, report: Report, sections: Sequence[Section], across: Sequence[TextTable]) -> str:
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("report.html.j2").render(
        name=name,
        sections=sections,
        across=across,
        counts=state_counts(report.runs),
        uncounted=_uncounted(report),
        legend=LEGEND,
        link=lambda run: f"../{quote(run.name)}/",
    )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
