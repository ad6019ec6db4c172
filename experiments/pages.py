"""Writes the tables of the studies' pages in docs/studies, between their two markers, from the committed results.

    python experiments/pages.py docs/studies/*.md

A page has the name of its study, whose results lie in experiments/results. Its tables are the declared claims with
their verdicts, the assay, every arm, the trials that chose its learning rate and, if the study measured its runs, the
measurements.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from adarank.errors import SettingError
from adarank.runs.files import read_json, write_text
from analysis import claims, forgetting, formats, items, prefixes, pruning, score_fidelity, stats, verdicts
from analysis.export import markdown
from analysis.format_table import TextTable
from analysis.load import FolderError, read_runs
from analysis.report import Report, assay_lines, load
from analysis.tables import Table, tables
from experiments.pack import unpack
from experiments.protocol import Place, publish

RESULTS = Path(__file__).resolve().parent / "results"
MARKER = "<!-- tables -->"


def rewrite(page: Path, tables: Sequence[str]) -> None:
    """Replace the text between the two MARKERs of a Markdown page. Raises SettingError unless it has exactly two."""
    if not page.is_file():
        raise SettingError(f"PAGE must be a file that exists (got {page})")
    parts = page.read_text(encoding="utf-8").split(MARKER)
    if len(parts) != 3:
        raise SettingError(f"{page} must hold the line {MARKER} twice (got {len(parts) - 1})")
    write_text(page, MARKER.join([parts[0], "\n\n" + "\n".join(tables) + "\n", parts[2]]))


def written(study: str) -> list[str]:
    """The tables of a study in experiments/results. Raises FolderError if no run of its comparison is finished."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        compared = list(parts(report_of(study, out)))
        measured = [each for table in trials_of(study, out) for each in measurements(table)]
        found = [*trial_tables(study), *(each._replace(title=f"Trials: {each.title}") for each in measured)]
        return [*compared, markdown(found)] if found else compared


def report_of(study: str, out: Path) -> Report:
    """The report on the comparison of a study in experiments/results, whose runs are unpacked in `out`. Raises
    FolderError if no run is finished."""
    unpack(RESULTS / study, out)
    (out / "seeds").mkdir(exist_ok=True)
    publish(Place(out, RESULTS / study, ()))
    return load(out / "seeds")


def trials_of(study: str, out: Path) -> list[Table]:
    """The tables of a study's committed trials, one for each task, whose runs are unpacked in `out`; none if it tried
    nothing."""
    unpack(RESULTS / study / "tuning", out / "tuning")
    return tables(read_runs(out / "tuning")) if (out / "tuning").is_dir() else []


def parts(report: Report) -> Iterator[str]:
    """The Markdown of each task: declared claims, assay, arms, measurements."""
    assays = iter(assay_lines(report))
    for place, table in enumerate(report.tables):
        yield markdown([*claim_tables(report, place), arm_table(table)])
        if report.declared is not None:
            yield f"{next(assays)}\n"
        measured = [*(report.measured[place] if report.measured else ()), *measurements(table)]
        if measured:
            yield markdown(measured)


def measurements(table: Table) -> list[TextTable]:
    """What `adarank probe` found, over the seeds: forgetting, also at equal norms of ΔW; prefixes; pruning; scores'
    fidelity."""
    equal = verdicts.exploratory(forgetting.at_equal_norm(table), False)
    named = [
        (forgetting.OVER_SEEDS, forgetting.header(table, "method"), forgetting.over_seeds(table)[0]),
        (forgetting.EQUAL_NORM, verdicts.EXPLORATORY_HEADER, equal),
        (prefixes.TITLE, prefixes.HEADER, prefixes.rows(table)[0]),
        (pruning.TITLE, pruning.HEADER, pruning.rows(table)[0]),
        (score_fidelity.SEEDS_TITLE, score_fidelity.SEEDS_HEADER, score_fidelity.over_seeds(table)[0]),
    ]
    return [TextTable(title, header, rows) for title, header, rows in named if rows]


def trial_tables(study: str) -> list[TextTable]:
    """For every task, the mean dev value of every arm's trials at each rate; the chosen one is bold."""
    found = []
    for file in sorted((RESULTS / study / "tuning").glob(f"*/{claims.RATES}")):
        lines = []
        for arm, choice in read_json(file).items():
            values = [
                f"**{rate:g}: {formats.metric(value)}**"
                if rate == choice["rate"]
                else f"{rate:g}: {formats.metric(value)}"
                for rate, value in choice["means"]
            ]
            lines.append([arm, " · ".join(values), "yes" if choice["at_the_edge"] else "no"])
        found.append(
            TextTable(f"Trials: {file.parent.name}, mean on dev", ["arm", "learning rate: dev", "at the edge"], lines)
        )
    return found


def claim_tables(report: Report, place: int) -> list[TextTable]:
    """The declared claims on a table's task, including those without a verdict yet; none if no claims were declared."""
    if report.declared is None:
        return []
    table, declared = report.tables[place], report.declared.claims
    task = verdicts.study_task(table, declared)
    judged = {verdict.comparison.name: verdict for verdict in report.family.verdicts[place]}
    lines = []
    for claim in (claim for claim in declared.each if claim.task == task):
        verdict = judged.get(claim.name)
        cells = ["no runs yet", *[formats.BLANK] * 6]
        if verdict is not None:
            found = formats.metric(verdict.difference, "+"), formats.span(verdict.interval)
            winner = claim.contrast.of if verdict.winner == verdict.comparison.methods[0] else claim.contrast.against
            text = f"{winner} better" if verdict.winner else verdict.text
            pairs, others = str(verdict.pairs), elsewhere(verdict, table.metric)
            cells = [text, *found, formats.probability(verdict.p), pairs, *others]
        lines.append([f"{claim.name}: {claim.contrast.of} − {claim.contrast.against}", *cells])
    if not lines:
        return []
    levels = {verdict.level for verdict in judged.values()} or {declared.level(task or "")}
    level = " or ".join(sorted(formats.percent(1 - level) for level in levels))
    margin = f"margin ±{declared.margins[task]:g}" if task else ""
    title = f"Declared {report.declared.declared[:10]}: {table.task}, {table.metric}, {level} intervals, {margin}"
    names = [
        "claim",
        "verdict",
        "difference",
        "interval",
        "p",
        "pairs",
        "error over seeds and test rows",
        "the same runs on dev",
    ]
    return [TextTable(title, names, lines)]


def elsewhere(verdict: verdicts.Verdict, metric: str) -> tuple[str, str]:
    """The standard error of a verdict's difference for new seeds and new test rows, if it is one of accuracies, and the
    mean difference of the same pairs of runs on dev, with a separate 95 % interval. Both are blank if the verdict has
    no interval."""
    comparison = verdict.comparison
    if verdict.interval is None:
        return formats.BLANK, formats.BLANK
    ours, theirs = ({run.seed: run.dev for run in row.runs} for row in comparison.rows or ())
    pairs = [(ours[seed], theirs[seed]) for seed in sorted({run.seed for run in comparison.runs})]
    estimate = stats.paired([a - b for a, b in pairs if a is not None and b is not None])
    both = [cells[-1] for cells in items.rows([verdict])[0] if metric == "accuracy"] or [formats.BLANK]
    return both[0], f"{formats.metric(estimate.mean, '+')} {formats.span(stats.interval(estimate, verdicts.LEVEL))}"


def arm_table(table: Table) -> TextTable:
    """A line for each arm: its learning rate, its seeds and how many did not learn, the metric over the seeds, the
    ranks and parameters it keeps."""
    lines = []
    for row in sorted(table.rows, key=lambda row: row.mean, reverse=table.higher_is_better):
        scores = list(row.scores.values())
        spread = formats.metric(float(np.std(scores, ddof=1))) if len(scores) > 1 else formats.BLANK
        lines.append([
            row.arm or row.method,
            row.settings["train.lr"],
            f"{len(scores)} ({row.failures[0]} did not learn)" if row.failures[0] else str(len(scores)),
            formats.interval(row.mean, row.half_width),
            spread,
            formats.metric(row.dev),
            formats.ranks(row.initial_rank, row.final_rank),
            formats.count(row.triplets),
            formats.count(row.kept),
        ])  # fmt: skip
    split = f"{table.metric} on {table.split}, last checkpoint"
    names = ["arm", "learning rate", "seeds", split, "SD", "on dev", "mean rank", "triplets", "parameters kept"]
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
            rewrite(page, written(page.stem))
            print(f"tables: {page}")
    except (SettingError, FolderError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
