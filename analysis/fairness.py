"""Warnings about unfair comparisons in a table, and notes that a reader of its numbers needs."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from adarank.runs.files import DELTA, FORGETTING, PREFIXES, PROBE, PRUNING, SIMILARITY
from analysis import forgetting, formats, prefixes, pruning, score_fidelity, weight_change
from analysis.load import Run
from analysis.plots import similarity
from analysis.rows import Row
from analysis.tables import Table, relative_time, searches

BUDGETS = ("initial triplets", "mean over training", "final triplets", "exact parameters")
TOLERANCE = 0.01  # budgets within a percent match: whole triplets do not divide every parameter budget
MANY = 6  # names in a sentence; if there are more, they are counted, and the tables list them all
MEASUREMENTS: dict[str, Callable[[Run], Any]] = {  # files of `adarank probe`; false if they cannot be read
    PROBE: score_fidelity.read,
    PRUNING: pruning.read,
    DELTA: weight_change.read,
    FORGETTING: forgetting.read,
    PREFIXES: prefixes.read,
    SIMILARITY: lambda run: similarity.read(run, {}),
}


def fairness_warnings(table: Table) -> list[str]:
    """One sentence per reason to doubt the table's comparisons; none if they are fair."""
    return [
        *_learning_rates(table),
        *_arms_at_different_rates(table),
        *_scales(table),
        *_dtypes(table),
        *_budgets(table),
    ]


def notes(table: Table) -> list[str]:
    """Sentences on unfair comparisons, blank cells, and rows that differ in kind."""
    lines = fairness_warnings(table)
    if not table.baselines and (first := next(iter(table.tuned), None)):
        lines.append(f"There is no LoRA run in this table: no relative times; the reference is {table.labels[first]}.")
    elif any(row.step_ms and relative_time(row, table.baselines[row]) is None for row in table.rows):
        lines.append("Relative times are blank where a row and its LoRA baseline ran on different or unknown devices.")
    lacking = [table.labels[row] for row in table.rows if len(row.other_scores) < len(row.scores)]
    if table.split == "test" and table.rows[0].runs[0].checkpoint == "last" and lacking:
        which = "Some seeds" if len(lacking) < len(table.rows) else "The runs"
        names = f": {_listed(lacking)}" if len(lacking) < len(table.rows) else ""
        lines.append(f"{which} have no test value of the last checkpoint, so the best on dev stands for it{names}.")
    devices = sorted(set[str]().union(*(row.devices for row in table.rows)))
    lines.append(f"Device: {'; '.join(devices)}.")
    recipes = {str(run.summary.get("recipe")) for row in table.rows for run in row.runs}
    if len(recipes) > 1:
        lines.append(f"The runs come from different recipes of the code: {', '.join(sorted(recipes))}.")
    for row in table.rows:
        if row.budget is not None and row.triplets is not None and abs(row.triplets - row.budget) > 1e-6:
            lines.append(f"{table.labels[row]} kept {row.triplets:g} triplets; its budget was {row.budget:g}.")
        if not row.settings:
            lines.append(f"{table.labels[row]}: config.yaml cannot be read, so its settings are not shown.")
    for label, run in table.labelled_runs():
        lines += [
            f"{name} of {label}, cannot be read and is omitted: {run.name}/{name}."
            for name, read in MEASUREMENTS.items()
            if (run.folder / name).is_file() and not read(run)
        ]
    return lines


def _learning_rates(table: Table) -> list[str]:
    lines: list[str] = []
    counts: dict[int, list[str]] = defaultdict(list)
    for search in searches(table):
        counts[len(search.tried)].append(search.name)
        if search.at_edge:
            rates = list(search.tried)
            lines.append(
                f"{search.name}: the best learning rate, {search.chosen.settings['train.lr']}, lies at the edge of its "
                f"grid ({rates[0]:g} to {rates[-1]:g}): widen it."
            )
    if len(counts) > 1:
        trials = "; ".join(f"{count} for {_listed(names)}" for count, names in sorted(counts.items()))
        lines.insert(0, f"Unequal numbers of learning-rate trials: {trials}.")
    return lines


def _arms_at_different_rates(table: Table) -> list[str]:
    """Rows compared with a reference at another learning rate, unless each has its own search."""
    different = [
        f"{table.labels[row]} {row.settings.get('train.lr')} against {reference.settings.get('train.lr')}"
        for row in table.tuned
        if (reference := _reference(table, row)) is not row
        and row.settings.get("train.lr") != reference.settings.get("train.lr")
    ]
    if not different:
        return []
    return [f"Compared at different learning rates, each at its own: {_few(different)}."]


def _reference(table: Table, row: Row) -> Row:
    return table.baselines.get(row, table.tuned[0])


def _scales(table: Table) -> list[str]:
    scales = {row: row.scale for row in table.tuned if row.scale is not None}
    if table.baselines:
        different = [
            f"{table.labels[row]} {scale:g} against {baseline:g}"
            for row, scale in scales.items()
            if (baseline := table.baselines[row].scale) is not None and not _close(scale, baseline)
        ]
        return [f"The effective scale α/r differs from LoRA's: {'; '.join(different)}."] if different else []
    if scales and not _close(min(scales.values()), max(scales.values())):
        values = "; ".join(f"{table.labels[row]} {scale:g}" for row, scale in scales.items())
        return [f"The effective scale α/r differs between rows: {values}."]
    return []


def _dtypes(table: Table) -> list[str]:
    """Rows that trained or computed in different dtypes, or on bases stored in different dtypes (except 4-bit bases,
    which a method's name shows; full fine-tuning has no frozen base)."""
    lines = []
    for part, verb in (("trained", "train parameters"), ("compute", "compute"), ("base", "store the frozen base")):
        rows: dict[str, list[str]] = defaultdict(list)
        for row in table.rows:
            for dtype in sorted({str((run.summary.get("dtype") or {}).get(part) or "") for run in row.runs}):
                if dtype not in ("", "nf4"):
                    rows[dtype].append(table.labels[row])
        if len(rows) > 1:
            which = "; ".join(f"{_listed(names)} in {dtype}" for dtype, names in sorted(rows.items()))
            lines.append(f"The rows {verb} in different dtypes: {which}.")
    return lines


def _close(value: float, other: float) -> bool:
    return abs(value - other) <= 1e-3 * abs(other)


def _budgets(table: Table) -> list[str]:
    different = []
    for row in table.tuned if table.baselines else ():
        ratios = table.budgets[row].relative_to(table.budgets[table.baselines[row]])
        off = [
            f"{name} {formats.ratio(ratio)}"
            for name, ratio in zip(BUDGETS, ratios, strict=True)
            if ratio is not None and abs(ratio - 1) > TOLERANCE
        ]
        if off:
            different.append(f"{table.labels[row]} ({', '.join(off)})")
    if len(different) > MANY:
        return [f"Budgets do not match LoRA's in {len(different)} configurations: see the budget, counted four ways."]
    return [f"Budgets do not match LoRA's: {'; '.join(different)}."] if different else []


def _few(names: Sequence[str]) -> str:
    return "; ".join(names[:MANY]) + (f"; and {len(names) - MANY} more" if len(names) > MANY else "")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= MANY else f"{len(names)} configurations"
