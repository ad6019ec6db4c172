"""A table as strings: the terminal and the page show the same ones."""

from collections.abc import Sequence

from analysis import formats
from analysis.tables import Row, Table, relative_time
from analysis.verdicts import verdicts

LEGEND = (
    "± is the half-width of a 95% t interval of the mean over the n seeds; one seed gives no interval.",
    "The metric is metric.test of the run's summary, or its last dev value where there is no test split.",
    "best dev: mean of the best dev values, an optimistic number: the best of several evaluations was picked.",
    "mean rank: per module, from creation to the end. triplets: kept at the end, all modules together.",
    "kept: parameters a finished model needs beyond its frozen base, head included; in full fine-tuning all of them.",
    "step: median over seeds; ÷ LoRA: relative to the LoRA row with the same rank and most settings in common.",
    "peak: the largest peak memory of the seeds. – means that there is no such number.",
)


def header(table: Table) -> list[str]:
    """The column names; the metric's names the split it comes from."""
    metric = f"{table.metric}, {'test' if table.split == 'test' else 'last dev'}"
    fixed = ["mean rank", "triplets", "trainable", "kept", metric, "n", "best dev", "step, ms", "÷ LoRA", "peak, MiB"]
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
        formats.significant(row.step_ms),
        formats.ratio(relative_time(row, table.references.get(row))),
        formats.significant(row.peak_mib),
    ]


def verdict_lines(table: Table) -> list[str]:
    """`adalora 12 → 8 against lora 8: equivalent (…)`, one line a comparison."""
    labels = table.labels
    return [f"{labels[v.row]} against {labels[v.reference]}: {v.text} ({v.detail})" for v in verdicts(table)]


def notes(table: Table) -> list[str]:
    """What a reader of the numbers must know: why cells are blank, and where rows are not alike."""
    lines = []
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
    """The table, its verdicts and notes for a terminal: first column left, the others right."""
    grid = [header(table), *(cells(table, row) for row in table.rows)]
    parts = [table.title, "", *_aligned(grid), "", *verdict_lines(table), *notes(table)]
    return "\n".join(parts)


def _aligned(grid: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in grid]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]
