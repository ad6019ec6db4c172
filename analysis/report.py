"""The report: OUT/report/index.html, one self-contained page, with its figures (PNG) and tables (.md, .tex) as files.

python analysis/report.py OUT
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

if __package__ in (None, ""):  # run as a script, sys.path[0] is analysis/: the repository's root belongs there
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from adarank.runs.files import write_bytes
from analysis import export
from analysis.fairness import notes
from analysis.figures import Picture, render_figures
from analysis.format_table import TextTable, across_tables, format_table, further_tables
from analysis.load import FolderError, Run, read_runs, state_counts
from analysis.tables import Table, tables

LEGEND = (
    "± is the half-width of a 95% t interval of the mean over the n seeds; one seed gives no interval.",
    "The metric is metric.test of the run's summary, or its last dev value where there is no test split.",
    "test is measured at the checkpoint that is best on dev (metric.test); where the runs have metric.test_last, too, "
    "the last checkpoint has a column of its own. Verdicts and figures use the former unless they say otherwise.",
    "best dev: mean of the best dev values, which is optimistic: the best of several evaluations was picked. "
    "last dev: mean of the dev values after the last step.",
    "mean rank: per module, from creation to the end. triplets: kept at the end, all modules together.",
    "kept: parameters a finished model needs beyond its frozen base, head included; in full fine-tuning all of them.",
    "step: median over seeds; ÷ LoRA: relative to the LoRA row with the same rank and most settings in common.",
    "peak: the largest peak memory of the seeds. – means that there is no such number.",
    "budget: triplets of all modules together, at creation, averaged over the steps, at the end; parameters as in "
    "kept; in brackets relative to the LoRA row. A configuration may match LoRA's in one count and not in the others.",
    "trials: learning rates tried for a method; the one that is best on dev is chosen. Methods with more trials than "
    "others, or a best rate at the edge of its grid, were not tuned equally well.",
    "difference: mean over all pairs (one seed on one task), with its BCa interval (none below 4 pairs of a task).",
    "Of several learning rates of one configuration only the best on dev is compared with LoRA, at LoRA's own best.",
    "p: two-sided sign-flip test, flipped within the task; in brackets after Holm's correction over the table; "
    "attainable: the smallest corrected p that the pairs could have reached. Above 0.05 nothing is decided.",
    "equivalent: Holm-corrected p of two one-sided paired t tests: the mean difference is within half a point (0.005).",
    "detectable: the true difference that a t test would find four times in five, at this n and spread, corrected.",
    "g: Hedges' g, paired. P(better): the probability that one of its runs beats one of LoRA's.",
)


@dataclass(frozen=True)
class Section:
    """What the page shows of one table: the table and the smaller ones below it, the notes on them, the figures."""

    table: Table
    tables: tuple[TextTable, ...]
    notes: tuple[str, ...]
    pictures: tuple[Picture, ...]


def load(out: Path) -> tuple[list[Run], list[Table]]:
    """The runs under `out` and the tables of the finished ones; raises FolderError when there is none."""
    runs = read_runs(out)
    if not any(run.state == "finished" for run in runs):
        raise FolderError(f"{out} holds no finished run: {state_counts(runs)}.")
    return runs, tables(runs)


def as_text(runs: Sequence[Run], tables: Sequence[Table]) -> str:
    """For the terminal: the tables of `runs`, the runs that do not count with their reasons, how to read the tables."""
    parts = [table_text(table) for table in tables]
    parts += [export.plain(table) for table in across_tables(tables)]
    uncounted = [f"  {run.name}: {run.state}, {run.reason}" for run in runs if run.state != "finished"]
    if uncounted:
        parts.append("\n".join([f"Not counted ({state_counts(runs)}):", *uncounted]))
    return "\n\n\n".join([*parts, "\n".join(LEGEND)])


def table_text(table: Table) -> str:
    """The table, the smaller tables below it and the notes on them."""
    parts = [export.plain(text_table) for text_table in (format_table(table), *further_tables(table))]
    return "\n\n".join([*parts, "\n".join(notes(table))])


def write_report(out: Path, runs: Sequence[Run], tables: Sequence[Table]) -> Path:
    """Write OUT/report/ (page, pictures, tables), replacing an earlier report; returns the page's path."""
    folder = out / "report"
    folder.mkdir(exist_ok=True)
    sections = []
    for i, table in enumerate(tables, 1):
        pictures, damaged = render_figures(table, f"_{i}" if len(tables) > 1 else "")
        text_tables = (format_table(table), *further_tables(table))
        sections.append(Section(table, text_tables, (*notes(table), *damaged), pictures))
    across = across_tables(tables)
    every_table = [table for section in sections for table in section.tables] + across
    files = {picture.name: picture.png for section in sections for picture in section.pictures}
    for name, png in files.items():
        write_bytes(folder / name, png)
    write_bytes(folder / "tables.md", export.markdown(every_table).encode())
    write_bytes(folder / "tables.tex", export.latex(every_table).encode())
    write_bytes(folder / "index.html", _render(out.resolve().name, runs, sections, across).encode())
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
        runs, loaded = load(out)
        if show:
            print(as_text(runs, loaded), end="\n\n", flush=True)
        page = write_report(out, runs, loaded)
    except (FolderError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(page.resolve())
    return 0


def _render(name: str, runs: Sequence[Run], sections: Sequence[Section], across: Sequence[TextTable]) -> str:
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("report.html.j2").render(
        name=name,
        sections=sections,
        across=across,
        counts=state_counts(runs),
        uncounted=[run for run in runs if run.state != "finished"],
        legend=LEGEND,
        link=lambda run: f"../{quote(run.name)}/",
    )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
