"""The report: OUT/report/index.html, one self-contained page, with its figures (PNG, SVG) and tables (CSV, Markdown,
LaTeX) as files.

python analysis/report.py OUT [--times FILE]

FILE: the JSON of experiments/bench/step.py, which adds each method's score at equal cost (parameters kept × time per
step).
"""

import argparse
import itertools
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

if __package__ in (None, ""):  # as a script, sys.path[0] is analysis/ but must be the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from adarank.runs.files import read_object, write_bytes
from analysis import claims, export, formats, measures, page, rank_picture
from analysis.claims import RATES, Declared
from analysis.curves import read_times
from analysis.fairness import notes
from analysis.figures import Picture, render_across, render_figures
from analysis.format_table import TextTable, across_tables, format_table, further_tables, runs_table, verdict_table
from analysis.load import FolderError, Run, read_runs, state_counts
from analysis.tables import Table, tables
from analysis.verdicts import Family, family

SHOWN = 30  # rows of a smaller table that the terminal prints
WIDTH = 100  # characters of a line if there is no terminal
SECTIONS = 4  # of a page; if there are more, all but the first three are folded
ROWS = 20  # of a table, before the reader asks for the others
WORDS = ("comparison", "verdict", "state", "reason")  # columns of words, which may need several lines
LEGEND = (
    "± is the half-width of a 95% t interval of the mean over the n seeds; one seed gives no interval.",
    "The metric is measured on test with the last checkpoint (metric.test_last), or on dev if there is no test split. "
    "The value at the checkpoint that is best on dev has its own column: adaptive methods choose it among fewer "
    "checkpoints than fixed ones. Runs without a test value of the last checkpoint are judged by the best.",
    "mean rank: per module, from creation to the end. triplets: kept at the end, over all modules.",
    "kept: parameters that a finished model needs beyond its frozen base, including the head; in full fine-tuning, "
    "all.",
    "step: median over seeds; ÷ LoRA: relative to the LoRA row with the same rank and most settings in common.",
    "peak: the largest peak memory over the seeds. – means that there is no such number.",
    "interval: of the mean paired difference (one seed of both methods), by Student's t. The intervals of a family "
    "hold simultaneously in 95% of families without any difference: each is computed at 0.05 divided by the number of "
    "comparisons. spread: paired, or for at most 5 pairs the larger of that and the one pooled over all methods of "
    "the table.",
    "The verdict follows from that interval. If it excludes 0, one method is better. If it lies within the margin, and "
    "an assay shows that a difference would be seen, the methods are equivalent. Otherwise the comparison is "
    "undecided; the verdict then states how many more seeds the test needs to find the observed difference (or the "
    "margin, if larger) four times in five. Fewer than 3 pairs decide nothing.",
    "p: of the paired t test, corrected like the interval. sign flip: exact two-sided p of a test that assumes no "
    "distribution, not corrected; with n pairs it cannot be below 2/2ⁿ.",
    "P(better): the share of pairs won, with ties counting half, and Wilson's interval. g: Hedges' g, paired. "
    "detectable: the true difference that the test would find four times in five.",
    "Of several learning rates of one configuration, only the best on dev is compared, among those over the most seeds "
    "and, if there are any, without diverged runs.",
    "budget: triplets over all modules, at creation, averaged over the steps, and at the end; parameters as in kept; "
    "in brackets relative to the LoRA row. A configuration may match LoRA's in one count but not in the others.",
    "within a point of the best: the range of learning rates around the best one whose dev value is at most 0.01 below "
    "its. mean over log rate: the area under the dev values over the logarithm of the rate, divided by its width.",
)


@dataclass(frozen=True)
class Report:
    """The contents of a folder of runs: its runs, the tables of the finished ones, the verdicts on them, the claims
    that were declared before the runs, if any, the arms of a study whose best rate lies at the edge of its grid
    (`edges`), and the relative times per step by method (`times`), from a benchmark."""

    runs: list[Run]
    tables: list[Table]
    family: Family
    declared: Declared | None
    edges: tuple[str, ...] = ()
    times: Mapping[str, float] = field(default_factory=dict)
    measured: tuple[list[TextTable], ...] = ()

    @cached_property
    def front(self) -> page.Front:
        """The content of the page's first screen and of the first lines on the terminal."""
        return page.front(self.runs, self.tables, self.family, self.declared, self.edges)


class Section(NamedTuple):
    """The page's section on one table: its short name, the results, the verdicts on them, the folded tables, the notes
    and the figures."""

    name: str
    table: Table
    results: TextTable
    verdicts: list[TextTable]
    further: list[TextTable]
    notes: tuple[str, ...]
    pictures: tuple[Picture, ...]

    @property
    def tables(self) -> list[TextTable]:
        """The tables for a paper, the verdicts first; the individual runs are in a separate file."""
        return [*self.verdicts, self.results, *self.further[:-1]]


def load(out: Path, times: Path | None = None) -> Report:
    """The report on the runs under `out`. times: the JSON of experiments/bench/step.py. Raises FolderError if no run is
    finished, or if the claims or the times cannot be read."""
    try:
        declared = claims.load(out)
        looks = claims.read_looks(out, declared) if declared else {}
        of_probe = measures.load(out)
    except claims.ClaimsError as error:
        raise FolderError(f"{error}.") from None
    runs = read_runs(out, declared.claims.checkpoint if declared else "last")
    if not any(run.state == "finished" for run in runs):
        raise FolderError(f"{out} holds no finished run: {state_counts(runs)}.")
    tasks = {task for each in (declared, of_probe) if each is not None for task in each.claims.margins}
    rates, _ = read_object(out / RATES)
    found = tables(runs, tasks, rates)
    judged = family(found, declared.claims if declared else None, looks)
    measured = tuple(measures.text_tables([table], of_probe) if of_probe else [] for table in found)
    return Report(runs, found, judged, declared, _edges(rates), read_times(times) if times else {}, measured)


def as_text(report: Report, width: int = WIDTH, everything: bool = True) -> str:
    """The text for the terminal, whose end is the most visible part: how sure the verdicts are, the tables, the
    runs that do not count, and how to read the tables; then the rank maps and the answers. No line exceeds `width`.

    everything: include the smaller tables and how to read them; otherwise only the titles of these tables.
    """
    which, sure, cost, where = (f"{question} {answer}" for question, answer in report.front.answers)
    lines = [sure, report.front.standing, *report.front.warnings, *assay_lines(report)]
    parts = ["\n".join(export.wrap(line, width) for line in lines)]
    for place in range(len(report.tables)):
        parts += [export.plain(text_table, width) for text_table in _verdicts(report, place)]
    parts += [table_text(report, i, width, everything) for i in range(len(report.tables))]
    parts += [export.plain(text_table, width) for text_table in across_tables(report.tables) if everything]
    uncounted = [export.wrap(f"{run.name}: {run.state}, {run.reason}", width, "  ") for run in _uncounted(report)]
    if uncounted:
        parts.append("\n".join([export.wrap(f"Not counted ({state_counts(report.runs)}):", width), *uncounted]))
    if everything:
        parts.append("\n".join(export.wrap(line, width) for line in LEGEND))
    parts += ["\n".join(map_lines(each, width)) for each in report.front.ranks]
    return "\n\n\n".join([*parts, "\n".join(export.wrap(line, width) for line in (which, cost, where))])


def map_lines(ranks: page.RankMap, width: int) -> list[str]:
    """A rank map with its title."""
    seeds = f", mean over {len(ranks.runs)} seeds" * (len(ranks.runs) > 1)
    top = formats.rank(round(float(np.nanmax(ranks.ranks)), 1))
    title = f"Final ranks of {ranks.label} on {ranks.task}{seeds}: kinds of modules by blocks; █ is rank {top}, · is 0"
    return [export.wrap(title, width), "", *rank_picture.draw(ranks.kinds, ranks.blocks, ranks.ranks, width)]


def table_text(report: Report, place: int, width: int = WIDTH, everything: bool = True) -> str:
    """Table number `place`, the smaller tables below it and the notes on them; only the titles of tables with more than
    SHOWN rows and, unless `everything` is true, of all smaller tables."""
    table, judged = report.tables[place], report.family.verdicts[place]
    further = further_tables(table, judged, report.declared is not None, report.times)
    short = [each for each in further if everything and len(each.rows) <= SHOWN]
    parts = [export.plain(text_table, width) for text_table in (format_table(table), *short)]
    lines = [f"{each.title}: {len(each.rows)} rows, on the page." for each in further if len(each.rows) > SHOWN]
    if further and not everything:
        titles = "; ".join(each.title.partition(" (")[0].partition(":")[0] for each in further)
        lines = [f"On the page and with --all: {titles}."]
    return "\n\n".join([*parts, "\n".join(export.wrap(line, width) for line in [*lines, *notes(table)])])


def assay_lines(report: Report) -> list[str]:
    """For each table, whether its task responds to the difference between the methods, as far as an assay shows."""
    lines = []
    for table, assays in zip(report.tables, report.family.assays, strict=True):
        so = "" if any(assay.shows for assay in assays) else "; nothing is called equivalent"
        for assay in assays:
            found = f"{assay.label} {formats.metric(assay.estimate.mean, '+')} {formats.span(assay.interval)}"
            if assay.shows:
                said = f"the assay shows ({found})"
            elif assay.of_rank and assay.falls_short:
                said = f"this task does not respond to rank by three margins ({found}){so}"
            elif assay.of_rank:
                said = f"whether this task responds to rank is undecided ({found}){so}"
            else:
                short = "does not show" if assay.falls_short else "is undecided"
                said = f"the positive control {short}, by three margins ({found}){so}"
            lines.append(f"{table.title}: {said}.")
        if not assays:
            lines.append(
                f"{table.title}: no assay (LoRA at two ranks, or allocator=global_bottom) shows that a difference "
                "would be seen, so nothing is called equivalent."
            )
    return lines


def write_report(out: Path, report: Report) -> Path:
    """Write OUT/report/ (page, figures, tables), replacing an earlier report; returns the page's path."""
    folder = out / "report"
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    names = page.short_names(report.tables)
    sections = [_section(report, i, name) for i, name in enumerate(names)]
    across, profiles = across_tables(report.tables), render_across(report.tables)
    every_table = [table for section in sections for table in section.tables] + across
    pictures = [*(picture for section in sections for picture in section.pictures), *profiles]
    files = {name: content for picture in pictures for name, content in picture.files.items()}
    for section in sections:
        within = section.table.title
        if [each.table.title for each in sections].count(within) > 1:
            within += f", {section.table.metric} on {section.table.split}"
        of_section = export.csv_files([*section.tables, section.further[-1]], within)
        files |= {f"tables/{name}": text.encode() for name, text in of_section.items()}
    files |= {f"tables/{name}": text.encode() for name, text in export.csv_files(across, "over tasks").items()}
    files["tables.md"], files["tables.tex"] = export.markdown(every_table).encode(), export.latex(every_table).encode()
    files["index.html"] = _render(out.resolve().name, report, sections, across, profiles).encode()
    for name, content in files.items():
        write_bytes(folder / name, content)
    for kind in ("*.png", "*.svg", "tables/*.csv"):  # files of an earlier report that this one lacks
        for file in folder.glob(kind):
            if file.relative_to(folder).as_posix() not in files:
                file.unlink()
    return folder / "index.html"


def main(arguments: Sequence[str], show: bool = False) -> int:
    """`report.py OUT` and, with show=True, `compare.py OUT`; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        getattr(stream, "reconfigure", lambda **_: None)(errors="replace")  # a terminal without ± or →
    name = f"python analysis/{'compare' if show else 'report'}.py"
    parser = argparse.ArgumentParser(name, description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("runs", type=Path, metavar="RUNS_FOLDER", help="the folder that holds the run folders")
    parser.add_argument(
        "--times", type=Path, metavar="FILE", help="the JSON of experiments/bench/step.py, for equal costs"
    )
    if show:
        parser.add_argument("--all", action="store_true", help="also print the smaller tables and how to read them")
    try:
        options = parser.parse_args(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    out = options.runs
    try:
        report = load(out, options.times)
        if show:
            width = shutil.get_terminal_size((WIDTH, 24)).columns
            print(as_text(report, width, options.all), end="\n\n", flush=True)
        page = write_report(out, report)
    except (FolderError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(page.resolve())
    return 0


def _edges(rates: Mapping[str, Any]) -> tuple[str, ...]:
    """A sentence for every arm of a study whose best rate lies at the edge of its grid; rates: as in rates.json."""
    return tuple(
        f"{task}, {arm}: the best learning rate, {chosen['rate']:g}, lies at the edge of its grid."
        for task, arms in rates.items()
        for arm, chosen in arms.items()
        if chosen.get("at_the_edge")
    )


def _section(report: Report, place: int, name: str) -> Section:
    table, judged = report.tables[place], report.family.verdicts[place]
    pictures, damaged = render_figures(table, judged, f"_{place + 1}" if len(report.tables) > 1 else "")
    return Section(
        name,
        table,
        format_table(table),
        _verdicts(report, place),
        [*further_tables(table, judged, report.declared is not None, report.times), runs_table(table)],
        (*notes(table), *damaged),
        pictures,
    )


def _verdicts(report: Report, place: int) -> list[TextTable]:
    """The verdicts on the metric of table number `place`, then those on its measurements by `adarank probe`."""
    table, judged = report.tables[place], report.family.verdicts[place]
    return [*verdict_table(table, report.family, judged), *(report.measured[place] if report.measured else [])]


def _uncounted(report: Report) -> list[Run]:
    return [run for run in report.runs if run.state != "finished"]


def _render(
    name: str, report: Report, sections: Sequence[Section], across: Sequence[TextTable], profiles: Sequence[Picture]
) -> str:
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    named = [(page.bracketed(table.kinds[row]), row.runs) for table in report.tables for row in table.rows]
    kinds = list(dict.fromkeys(kind for kind, _ in named))
    kind_of = {run.name: kinds.index(kind) for kind, runs in named for run in runs}
    ids = itertools.count(1)
    return environment.get_template("report.html.j2").render(
        name=name,
        front=report.front,
        sections=sections,
        across=across,
        profiles=profiles,
        uncounted=_uncounted_table(report),
        legend=LEGEND,
        kinds=kinds,
        settings=json.dumps(page.settings(report.tables, report.family)).replace("<", "\\u003c"),
        rank=formats.rank,
        sections_shown=SECTIONS,
        rows_shown=ROWS,
        matrix_shown=page.MATRIX_ROWS,
        words=WORDS,
        link=lambda run: f"../{quote(run.name)}/",
        next_id=lambda: next(ids),
        kinds_of=lambda runs: " ".join(map(str, sorted({kind_of[run.name] for run in runs if run.name in kind_of}))),
    )


def _uncounted_table(report: Report) -> TextTable | None:
    runs = _uncounted(report)
    if not runs:
        return None
    lines = [[run.name, run.state, run.reason] for run in runs]
    return TextTable(f"Not counted ({state_counts(runs)})", ["run", "state", "reason"], lines, [[run] for run in runs])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
