"""Writes the tables of the studies' pages in docs/studies, between their two markers, from the committed results.

    python experiments/pages.py docs/studies/*.md

A page has the name of its study, whose results lie in experiments/results. Its tables are the declared claims with
their verdicts, the assay, every arm and, where a study measured its runs, what came of that.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from adarank.errors import SettingError
from adarank.runs.files import write_text
from analysis import claims, formats, measures, pruning, verdicts
from analysis.export import markdown
from analysis.format_table import TextTable
from analysis.load import FolderError
from analysis.report import Report, assay_lines, load
from analysis.tables import Table
from experiments.pack import unpack

RESULTS = Path(__file__).resolve().parent / "results"
MARKER = "<!-- tables -->"


def rewrite(page: Path, tables: Sequence[str]) -> None:
    """Replace what a Markdown page has between its two MARKERs. Raises SettingError if it does not have both."""
    if not page.is_file():
        raise SettingError(f"PAGE must be a file that exists (got {page})")
    parts = page.read_text(encoding="utf-8").split(MARKER)
    if len(parts) != 3:
        raise SettingError(f"{page} must hold the line {MARKER} twice (got {len(parts) - 1})")
    write_text(page, MARKER.join([parts[0], "\n\n" + "\n".join(tables) + "\n", parts[2]]))


def report_of(study: str) -> Report:
    """The report on the comparison of a study in experiments/results. Raises FolderError if no run is finished."""
    with tempfile.TemporaryDirectory() as folder:
        unpack(RESULTS / study, Path(folder))
        runs = Path(folder) / "seeds"
        runs.mkdir(exist_ok=True)
        for name in (claims.FILE, claims.LOOKS, measures.FILE):
            if (RESULTS / study / name).is_file():
                shutil.copy(RESULTS / study / name, runs / name)
        return load(runs)


def parts(report: Report) -> Iterator[str]:
    """The Markdown of each task: declared claims, assay, arms, measurements."""
    assays = iter(assay_lines(report))
    for place, table in enumerate(report.tables):
        yield markdown([*claim_tables(report, place), arm_table(table)])
        yield f"{next(assays)}\n"
        if report.measured and report.measured[place]:
            yield markdown(report.measured[place])
        if rows := pruning.rows(table)[0]:
            yield markdown([TextTable(pruning.TITLE, pruning.HEADER, rows)])


def claim_tables(report: Report, place: int) -> list[TextTable]:
    """The declared claims on the task of a table, also those without a verdict yet; none if no claims were declared."""
    if report.declared is None:
        return []
    table, declared = report.tables[place], report.declared.claims
    task = verdicts.study_task(table, declared)
    judged = {verdict.comparison.name: verdict for verdict in report.family.verdicts[place]}
    lines = []
    for claim in (claim for claim in declared.each if claim.task == task):
        verdict = judged.get(claim.contrast.name)
        cells = ["no runs yet", *[formats.BLANK] * 4]
        if verdict is not None:
            found = formats.metric(verdict.difference, "+"), formats.span(verdict.interval)
            winner = claim.contrast.of if verdict.winner == verdict.comparison.methods[0] else claim.contrast.against
            text = f"{winner} better" if verdict.winner else verdict.text
            cells = [text, *found, formats.probability(verdict.p), str(verdict.pairs)]
        lines.append([f"{claim.contrast.name}: {claim.contrast.of} − {claim.contrast.against}", *cells])
    if not lines:
        return []
    level = formats.percent(1 - declared.level(task or ""))
    margin = f"margin ±{declared.margins[task]:g}" if task else ""
    title = f"Declared {report.declared.declared[:10]}: {table.task}, {table.metric}, {level} intervals, {margin}"
    return [TextTable(title, ["claim", "verdict", "difference", "interval", "p", "pairs"], lines)]


def arm_table(table: Table) -> TextTable:
    """A line for each arm: its rate, the metric over the seeds, what it keeps and takes."""
    lines = []
    for row in sorted(table.rows, key=lambda row: row.mean, reverse=table.higher_is_better):
        scores = list(row.scores.values())
        spread = formats.metric(float(np.std(scores, ddof=1))) if len(scores) > 1 else formats.BLANK
        minutes = [run.summary["time"]["train_s"] / 60 for run in row.runs]
        lines.append([
            row.arm or row.method,
            row.settings["train.lr"],
            str(len(scores)),
            formats.interval(row.mean, row.half_width),
            spread,
            formats.ranks(row.initial_rank, row.final_rank),
            formats.count(row.triplets),
            formats.count(row.kept),
            formats.significant(float(np.median(minutes))),
        ])  # fmt: skip
    split = f"{table.metric} on {table.split}, last checkpoint"
    names = ["arm", "learning rate", "seeds", split, "SD", "mean rank", "triplets", "parameters kept", "minutes"]
    return TextTable(f"Every arm: {table.title}", names, lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "pages", type=Path, nargs="+", metavar="PAGE", help="Markdown files, each named after its study"
    )
    options = parser.parse_args()
    try:
        for page in options.pages:
            if not (RESULTS / page.stem).is_dir():
                raise SettingError(f"PAGE must be named after a study in experiments/results (got {page.name})")
            rewrite(page, list(parts(report_of(page.stem))))
            print(f"tables: {page}")
    except (SettingError, FolderError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
