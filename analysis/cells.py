"""A table as strings: the terminal and the page show the same ones."""

from collections.abc import Sequence
from typing import NamedTuple

from analysis import budgets, delta, dynamics, forgetting, formats, probe, verdicts
from analysis.across import Across
from analysis.cautions import cautions
from analysis.tables import Row, Table, relative_time

LEGEND = (
    "± is the half-width of a 95% t interval of the mean over the n seeds; one seed gives no interval.",
    "The metric is metric.test of the run's summary, or its last dev value where there is no test split.",
    "best dev: mean of the best dev values, an optimistic number: the best of several evaluations was picked; "
    "test is measured at that checkpoint. last dev: mean of the dev values after the last step.",
    "mean rank: per module, from creation to the end. triplets: kept at the end, all modules together.",
    "kept: parameters a finished model needs beyond its frozen base, head included; in full fine-tuning all of them.",
    "step: median over seeds; ÷ LoRA: relative to the LoRA row with the same rank and most settings in common.",
    "peak: the largest peak memory of the seeds. – means that there is no such number.",
    "budget: triplets of all modules together, at creation, averaged over the steps, at the end; parameters as in "
    "kept; in brackets relative to the LoRA row. A configuration may match LoRA's in one count and not in the others.",
    "difference: mean over the pairs of a seed on a task, with its BCa interval (none below 4 pairs of a task).",
    "Of several learning rates of one configuration only the best on dev is set against LoRA, at LoRA's own best.",
    "p: two-sided sign-flip test, flipped within the task; in brackets after Holm's correction over the table; "
    "attainable: the smallest corrected p that the pairs could have reached. Above 0.05 nothing is decided.",
    "equivalent: Holm-corrected p of two one-sided paired t tests: the mean difference is within half a point (0.005).",
    "detectable: the true difference that a t test would find four times in five, at this n and spread, corrected.",
    "g: Hedges' g, paired. P(better): the chance that one of its runs beats one of LoRA's.",
)


class Grid(NamedTuple):
    """A small table below a title."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def header(table: Table) -> list[str]:
    """The column names; the metric's names the split it comes from."""
    metric = f"{table.metric}, {'test' if table.split == 'test' else 'last dev'}"
    dev = ["best dev", *(["last dev"] if table.split == "test" else [])]
    fixed = ["mean rank", "triplets", "trainable", "kept", metric, "n", *dev, "step, ms", "÷ LoRA", "peak, MiB"]
    return ["method", *table.settings, *fixed]


def cells(table: Table, row: Row) -> list[str]:
    """One row, a string for each name in `header`."""
    return [
        row.method,
        *(row.settings.get(key, formats.BLANK) for key in table.settings),
        formats.ranks(row.initial_rank, row.final_rank),
        formats.count(row.triplets),
        formats.count(row.trainable),
        formats.count(row.kept),
        formats.interval(row.mean, row.half_width),
        str(len(row.scores)),
        formats.metric(row.best),
        *([formats.metric(row.last)] if table.split == "test" else []),
        formats.significant(row.step_ms),
        formats.ratio(relative_time(row, table.references.get(row))),
        formats.significant(row.peak_mib),
    ]


def main_grid(table: Table) -> Grid:
    return Grid(table.title, header(table), [cells(table, row) for row in table.rows])


def grids(table: Table) -> list[Grid]:
    """What belongs below the table: the verdicts, the budgets counted four ways, what the scores are worth."""
    found = []
    if judged := verdicts.verdicts(table):
        where = "test" if table.split == "test" else "last dev value"
        title = f"Against LoRA, over the seeds that both have ({table.metric}, {where})"
        found.append(Grid(title, verdicts.HEADER, list(map(verdicts.cells, judged))))
    rows = [row for row in table.rows if row.ranks]
    if rows:
        title = "The budget, counted four ways"
        found.append(Grid(title, ["method", *budgets.NAMES], [_budget_cells(table, row) for row in rows]))
    if worth := probe.rows(table):
        title = "Do the scores mean anything? Each beside the rise of the dev loss without the triplet"
        found.append(Grid(title, probe.HEADER, worth))
    if judged := dynamics.verdicts(table):
        found.append(Grid(dynamics.TITLE, verdicts.HEADER, list(map(verdicts.cells, judged))))
    if changes := delta.rows(table):
        title = "What became of the weights: ΔW, medians over its modules"
        found.append(Grid(title, delta.HEADER, changes))
    if lost := forgetting.rows(table):
        found.append(Grid("What was forgotten beside what was learned", forgetting.header(table), lost))
    return found


def across_grid(found: Across) -> Grid:
    return Grid(found.title, verdicts.HEADER, list(map(verdicts.cells, found.verdicts)))


def _budget_cells(table: Table, row: Row) -> list[str]:
    own, other = table.budgets[row], table.references.get(row)
    ratios = budgets.ratios(own, table.budgets[other]) if other and other is not row else [None] * 4
    shown = [f" ({formats.ratio(ratio)})" if ratio is not None else "" for ratio in ratios]
    return [table.labels[row], *(formats.count(value) + end for value, end in zip(own, shown, strict=True))]


def notes(table: Table) -> list[str]:
    """What a reader of the numbers must know: what is unfair, why cells are blank, and where rows are not alike."""
    lines = cautions(table)
    if not table.references:
        lines.append("There is no LoRA run in this table: no relative times and no verdicts.")
    elif any(row.step_ms and relative_time(row, table.references[row]) is None for row in table.rows):
        lines.append("Relative times are blank where a row and its LoRA reference ran on different or unknown devices.")
    devices = sorted(set[str]().union(*(row.devices for row in table.rows)))
    lines.append(f"Device: {'; '.join(devices)}.")
    recipes = {str(run.summary.get("recipe")) for row in table.rows for run in row.runs}
    if len(recipes) > 1:
        lines.append(f"The runs were made by different recipes of the code: {', '.join(sorted(recipes))}.")
    for row in table.rows:
        if row.budget is not None and row.triplets is not None and abs(row.triplets - row.budget) > 1e-6:
            lines.append(f"{table.labels[row]} kept {row.triplets:g} triplets; its budget was {row.budget:g}.")
        if not row.settings:
            lines.append(f"{table.labels[row]}: no config.yaml can be read, its settings are not shown.")
    return lines


def as_text(table: Table) -> str:
    """The table, what belongs below it and its notes for a terminal: first column left, the others right."""
    parts = [table.title, "", *aligned([header(table), *(cells(table, row) for row in table.rows)]), ""]
    for grid in grids(table):
        parts += [grid_text(grid), ""]
    return "\n".join([*parts, *notes(table)])


def grid_text(grid: Grid) -> str:
    return "\n".join([grid.title, "", *aligned([grid.header, *grid.rows])])


def aligned(grid: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in grid]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]
