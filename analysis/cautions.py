"""What makes a comparison unfair, said beside it."""

from collections import defaultdict

from analysis import budgets, formats
from analysis.tables import Row, Table

ALIKE = 0.01  # budgets within a percent match: whole triplets do not divide every parameter budget


def cautions(table: Table) -> list[str]:
    """One sentence for each doubt about the table's comparisons, none where they are fair."""
    return [*_learning_rates(table), *_scales(table), *_budgets(table)]


def trials(table: Table) -> dict[tuple[str, str], dict[float, Row]]:
    """{(method, ranks): {learning rate: row}}; of several rows with one rate the best on dev."""
    found: dict[tuple[str, str], dict[float, Row]] = defaultdict(dict)
    for row in table.best_first(table.rows):
        if (lr := formats.as_number(row.settings.get("train.lr"))) is not None:
            found[row.method, formats.ranks(row.initial_rank, row.final_rank)].setdefault(lr, row)
    return {key: dict(sorted(rows.items())) for key, rows in found.items()}


def _learning_rates(table: Table) -> list[str]:
    lines, found = [], trials(table)
    counts = {name: max(len(rows) for (method, _), rows in found.items() if method == name) for name, _ in found}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{method} {n}" for method, n in sorted(counts.items()))
        lines.append(f"Unequal numbers of learning-rate trials: {shown}.")
    for (method, ranks), rows in found.items():
        best = table.best_first(rows.values())[0]
        rates = list(rows)
        if len(rates) > 1 and best.best is not None and best in (rows[rates[0]], rows[rates[-1]]):
            name = method if ranks == formats.BLANK else f"{method} {ranks}"
            lines.append(
                f"{name}: the best learning rate, {best.settings['train.lr']}, lies at the edge of its grid "
                f"({rates[0]:g} to {rates[-1]:g}): widen it."
            )
    return lines


def _scales(table: Table) -> list[str]:
    unlike = [
        f"{table.labels[row]} {row.scale:g} against {other.scale:g}"
        for row, other in table.references.items()
        if row.scale is not None and other.scale is not None and abs(row.scale - other.scale) > 1e-3 * other.scale
    ]
    return [f"The effective scale α/r is not that of LoRA: {'; '.join(unlike)}."] if unlike else []


def _budgets(table: Table) -> list[str]:
    unlike = []
    for row, other in table.references.items():
        ratios = budgets.ratios(table.budgets[row], table.budgets[other])
        off = [
            f"{name} {formats.ratio(ratio)}"
            for name, ratio in zip(budgets.NAMES, ratios, strict=True)
            if ratio is not None and abs(ratio - 1) > ALIKE
        ]
        if off:
            unlike.append(f"{table.labels[row]} ({', '.join(off)})")
    return [f"Budgets do not match LoRA's: {'; '.join(unlike)}."] if unlike else []
