"""What makes a comparison unfair, said beside it."""

from collections import defaultdict
from collections.abc import Sequence

from analysis import budgets, formats
from analysis.tables import Table
from analysis.trials import searches

ALIKE = 0.01  # budgets within a percent match: whole triplets do not divide every parameter budget
MANY = 6  # names in a sentence; more are counted, the tables have them all


def cautions(table: Table) -> list[str]:
    """One sentence for each doubt about the table's comparisons, none where they are fair."""
    return [*_learning_rates(table), *_scales(table), *_budgets(table)]


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
        shown = "; ".join(f"{count} for {_listed(names)}" for count, names in sorted(counts.items()))
        lines.insert(0, f"Unequal numbers of learning-rate trials: {shown}.")
    return lines


def _scales(table: Table) -> list[str]:
    scales = {row: row.scale for row in table.tuned if row.scale is not None}
    if table.references:
        others = {row: table.references[row].scale for row in scales}
        unlike = [
            f"{table.labels[row]} {scale:g} against {other:g}"
            for row, scale in scales.items()
            if (other := others[row]) is not None and not _alike(scale, other)
        ]
        return [f"The effective scale α/r is not that of LoRA: {'; '.join(unlike)}."] if unlike else []
    if scales and not _alike(min(scales.values()), max(scales.values())):
        shown = "; ".join(f"{table.labels[row]} {scale:g}" for row, scale in scales.items())
        return [f"The effective scale α/r is not the same for all: {shown}."]
    return []


def _alike(one: float, other: float) -> bool:
    return abs(one - other) <= 1e-3 * abs(other)


def _budgets(table: Table) -> list[str]:
    unlike = []
    for row in table.tuned if table.references else ():
        ratios = budgets.ratios(table.budgets[row], table.budgets[table.references[row]])
        off = [
            f"{name} {formats.ratio(ratio)}"
            for name, ratio in zip(budgets.NAMES, ratios, strict=True)
            if ratio is not None and abs(ratio - 1) > ALIKE
        ]
        if off:
            unlike.append(f"{table.labels[row]} ({', '.join(off)})")
    if len(unlike) > MANY:
        return [f"Budgets do not match LoRA's in {len(unlike)} configurations: see the budget, counted four ways."]
    return [f"Budgets do not match LoRA's: {'; '.join(unlike)}."] if unlike else []


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= MANY else f"{len(names)} configurations"
