"""The same comparison over several tasks: one verdict from all task × seed pairs."""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from analysis.pairs import compare
from analysis.rows import Row
from analysis.tables import Table, kind_and_ranks
from analysis.verdicts import MARGIN, Verdict, judge, unit_scale


class Across(NamedTuple):
    """title: model, tasks and targets; verdicts: over the configurations that every one of the tasks has."""

    title: str
    verdicts: list[Verdict]


def across(tables: Iterable[Table]) -> list[Across]:
    """Verdicts over the tasks of a model, targets and split; none for a single task.

    A configuration is a kind of row with the ranks it was asked for, on every task the one that is best on dev (each has
    its own learning rate). Only metrics to maximise within -1..1 may be averaged over tasks: others are left to their
    own tables.
    """
    groups: dict[tuple[str, str, str], list[Table]] = defaultdict(list)
    for table in tables:
        if table.references and unit_scale(table):
            groups[table.model, table.targets, table.split].append(table)
    found = []
    for (model, targets, split), group in groups.items():
        if len(group) < 2:
            continue
        best = [_best(table) for table in group]
        shared = [key for key in best[0] if all(key in rows for rows in best)]
        comparisons = []
        for key in shared:
            pairs = [(rows[key], table.references[rows[key]]) for rows, table in zip(best, group, strict=True)]
            if not any(row is reference for row, reference in pairs):
                ours, theirs = (
                    sorted({kind_and_ranks(table, row) for row, table in zip(rows, group, strict=True)})
                    for rows in zip(*pairs, strict=True)
                )
                kinds = (group[0].kinds[pairs[0][0]], group[0].kinds[pairs[0][1]])
                comparisons.append(compare(" / ".join(ours), " / ".join(theirs), kinds, pairs))
        if comparisons:
            where = [model, *([f"targets {targets}"] if targets else []), split]
            title = f"{', '.join(where)}, over {len(group)} tasks: {', '.join(table.task for table in group)}"
            found.append(Across(title, judge(comparisons, MARGIN, higher_is_better=True)))
    return found


def _best(table: Table) -> dict[tuple[str, ...], Row]:
    def key(row: Row) -> tuple[str, ...]:
        return (table.kinds[row], *row.asked)

    return {key(row): row for row in table.best(key)}
