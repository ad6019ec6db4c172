"""Runs to tables: one table for each model, task, targets and metric, one row for each configuration."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, replace

from analysis import formats
from analysis.budgets import Budget, budget
from analysis.load import Run, identity
from analysis.maps import pooled
from analysis.references import references
from analysis.rows import Row, make_row
from analysis.settings import REFERENCE, differing, in_order, kinds, labels, visible

FEW = 8  # rows that a figure of lines can hold


@dataclass(frozen=True)
class Table:
    """Rows that may stand side by side, in reading order.

    settings: the settings in which they differ; labels: a short name for each row; kinds: what each is, whatever its ranks
    and learning rate; references: the LoRA row that a
    row is measured against, empty where there is none; budgets: what each was allowed.
    """

    model: str
    task: str
    targets: str
    metric: str
    split: str
    higher_is_better: bool
    rows: tuple[Row, ...]
    settings: tuple[str, ...] = ()
    labels: dict[Row, str] = field(default_factory=dict)
    kinds: dict[Row, str] = field(default_factory=dict)
    references: dict[Row, Row] = field(default_factory=dict)
    budgets: dict[Row, Budget] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return ", ".join([self.model, self.task, *([f"targets {self.targets}"] if self.targets else [])])

    def best_first(self, rows: Iterable[Row]) -> list[Row]:
        """Rows from the best dev value down; rows without one last."""
        sign = -1.0 if self.higher_is_better else 1.0
        return sorted(rows, key=lambda row: (row.best is None, sign * (row.best or 0.0)))

    def best(self, key: Callable[[Row], Hashable]) -> tuple[Row, ...]:
        """Of the rows with the same key the one that is best on dev, in reading order."""
        found: dict[Hashable, Row] = {}
        for row in self.best_first(self.rows):
            found.setdefault(key(row), row)
        chosen = set(found.values())
        return tuple(row for row in self.rows if row in chosen)

    @property
    def tuned(self) -> tuple[Row, ...]:
        """The rows to be judged: of those that differ in the learning rate alone, the one that is best on dev.

        A trial of a search is no method of its own: judged too, it would only make the others' correction harder.
        """
        return self.best(_but_for_the_rate)

    @property
    def shown(self) -> tuple[Row, ...]:
        """The rows for figures that hold FEW: all, or of every kind the best on dev, LoRA and the best first."""
        if len(self.rows) <= FEW:
            return self.rows
        each = self.best(self.kinds.__getitem__)
        order = sorted(self.best_first(each), key=lambda row: row.method != REFERENCE)  # stable
        chosen = set(order[:FEW])
        return tuple(row for row in self.rows if row in chosen)


def tables(runs: Iterable[Run]) -> list[Table]:
    """The tables of the finished runs among `runs`.

    Methods without a rank (full fine-tuning) have no targets: they stand in the table of every targets.
    """
    seeds: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for run in runs:
        if run.state == "finished":
            seeds[identity(run)].append(run)
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for key, group in seeds.items():
        _, _, model, task, _, name, split = key
        groups[model, task, name, split].append(make_row(group))
    result = []
    for (model, task, name, split), found in sorted(groups.items()):
        rows = pooled(found)
        metric = rows[0].runs[0].summary["metric"]
        higher = metric.get("higher_is_better") is not False
        for targets in sorted({row.targets for row in rows if row.ranks}) or [""]:
            chosen = [row for row in rows if not row.ranks or row.targets == targets]
            result.append(_finish(Table(model, task, targets, name, split, higher, tuple(chosen))))
    return result


def relative_time(row: Row, reference: Row | None) -> float | None:
    """Time per step in units of the reference's, None unless both were measured on the same one device."""
    if reference is None or row.step_ms is None or not reference.step_ms:
        return None
    devices = row.devices | reference.devices
    return row.step_ms / reference.step_ms if len(devices) == 1 and "unknown" not in devices else None


def kind_and_ranks(table: Table, row: Row) -> str:
    """`adalora 12 → 8, allocator uniform`: a row's name but for its learning rate."""
    if not row.ranks:
        return table.kinds[row]
    method, *told = table.kinds[row].split(", ", 1)
    return ", ".join([f"{method} {formats.ranks(row.initial_rank, row.final_rank)}", *told])


def _finish(table: Table) -> Table:
    """The table with its rows in order, its settings chosen, its rows named and each row's reference found."""
    rows = in_order(table.rows)
    settings = differing(rows)
    return replace(
        table,
        rows=rows,
        settings=settings,
        labels=labels(rows, settings),
        kinds=kinds(rows, settings),
        references=references(table.best_first(rows), rows),
        budgets={row: budget(row.runs, row.kept) for row in rows},
    )


def _but_for_the_rate(row: Row) -> Hashable:
    """What two trials of one search have in common; a row whose settings cannot be read is like no other."""
    rest = sorted(item for item in visible(row).items() if item[0] != "train.lr")
    return (row.method, row.asked, None if row.settings else row.configuration, *rest)
