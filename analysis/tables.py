"""Turns runs into tables: one table per model, task, targets and metric, with one row per configuration."""

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import attrgetter
from pathlib import PurePath
from typing import Any, NamedTuple

from analysis import formats
from analysis.load import FolderError, Run, identity
from analysis.rows import Budget, Row, budget, make_row, pool_rank_maps
from analysis.settings import REFERENCE, baselines, differing, in_order, kinds, labels

FEW = 8  # the most rows in a figure of lines


@dataclass(frozen=True)
class Table:
    """Rows that can be compared, in reading order.

    settings: those in which the rows differ; labels: a short name for each row; kinds: the kind of each row, regardless
    of its ranks and learning rate; baselines: the LoRA row against which each row is measured, empty if there is none;
    budgets: the budget of each row; arms: the rows of each arm of a study, those at its chosen learning rate if that
    is known.
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
    baselines: dict[Row, Row] = field(default_factory=dict)
    budgets: dict[Row, Budget] = field(default_factory=dict)
    arms: dict[str, list[Row]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return ", ".join([self.model, self.task, *([f"targets {self.targets}"] if self.targets else [])])

    def best_first(self, rows: Iterable[Row]) -> list[Row]:
        """Rows by dev value, the best first; rows without one last."""
        sign = -1.0 if self.higher_is_better else 1.0
        return sorted(rows, key=lambda row: (row.dev is None, sign * (row.dev or 0.0)))

    def chosen_first(self, rows: Iterable[Row]) -> list[Row]:
        """Rows in the order in which a search would choose them: without diverged runs, over the most seeds, and then
        by dev value; one lucky seed chooses no learning rate."""
        return sorted(self.best_first(rows), key=lambda row: (row.dev is None, bool(row.diverged), -len(row.scores)))

    def best(self, key: Callable[[Row], Hashable]) -> tuple[Row, ...]:
        """For each value of `key` the row that a search would choose, in reading order."""
        return self._first(key, self.chosen_first(self.rows))

    def _first(self, key: Callable[[Row], Hashable], rows: Iterable[Row]) -> tuple[Row, ...]:
        """For each value of `key` the first of `rows`, in reading order."""
        first: dict[Hashable, Row] = {}
        for row in rows:
            first.setdefault(key(row), row)
        chosen = set(first.values())
        return tuple(row for row in self.rows if row in chosen)

    def row_of(self, arm: str) -> Row:
        """The row of an arm of a study. Raises FolderError if runs with several configurations have its name."""
        row, *others = self.arms[arm]
        if others:
            got = " and ".join(str(PurePath(each.runs[0].name).parent / each.configuration) for each in (row, *others))
            raise FolderError(f"Runs of arm {arm} must differ only in their seeds (got {got}); move the others away.")
        return row

    def trials(self, row: Row) -> tuple[Row, ...]:
        """The rows that differ from `row` at most in the learning rate."""
        return tuple(each for each in self.rows if _all_but_learning_rate(each) == _all_but_learning_rate(row))

    @cached_property
    def tuned(self) -> tuple[Row, ...]:
        """The rows to judge: of those that differ only in the learning rate, the first of `chosen_first`.

        A trial of a search is not a separate method, and judging it would only raise the others' corrected p values.
        """
        return self._first(_all_but_learning_rate, self.chosen_first(self.rows))

    @cached_property
    def shown(self) -> tuple[Row, ...]:
        """The rows for figures with at most FEW: all, or the best on dev of every kind, with LoRA and the best
        first."""
        if len(self.rows) <= FEW:
            return self.rows
        best = self.best(self.kinds.__getitem__)
        order = sorted(self.best_first(best), key=lambda row: row.method != REFERENCE)  # stable
        chosen = set(order[:FEW])
        return tuple(row for row in self.rows if row in chosen)

    def labelled_runs(self) -> Iterator[tuple[str, Run]]:
        """Every run with its name: `lora 8, seed 0`."""
        for row in self.rows:
            for run in row.runs:
                yield f"{self.labels[row]}, seed {run.seed}", run


Lines = tuple[list[list[str]], list[list[Run]]]  # the rows of a table as strings, and the runs of each


def lines_per_run(table: Table, cells: Callable[[Run], Iterable[list[str]]]) -> Lines:
    """The lines that `cells` gives for every run, each after the run's name."""
    pairs = [([label, *line], [run]) for label, run in table.labelled_runs() for line in cells(run)]
    return [line for line, _ in pairs], [runs for _, runs in pairs]


class Search(NamedTuple):
    """The search of one kind of row at its ranks. tried: {learning rate: row}, ascending; chosen: the best on dev."""

    name: str
    tried: Mapping[float, Row]
    chosen: Row

    @property
    def at_edge(self) -> bool:
        """Whether the best of several rates is the lowest or the highest, so that a better one may lie beyond."""
        rates = list(self.tried)
        ends = (self.tried[rates[0]], self.tried[rates[-1]])
        return len(rates) > 1 and self.chosen.dev is not None and self.chosen in ends


def tables(
    runs: Iterable[Run], tasks: Collection[str] = (), rates: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Table]:
    """The tables of the finished runs among `runs`.

    tasks: those of a study, which are the folders of its runs; each has a separate table, even if several read the same
    data. rates: {task: {arm or method: what its trials chose}}, as in a study's rates.json.

    Methods without a rank (full fine-tuning) have no targets: they appear in the tables of all targets.
    """
    seeds: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    diverged: dict[str, set[int]] = defaultdict(set)
    for run in runs:
        if run.state == "finished":
            seeds[identity(run)].append(run)
        elif run.state == "diverged":
            diverged[run.configuration].add(run.seed)
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for key, same in seeds.items():
        configuration, _, model, task, _, _, name, split = key
        folder = same[0].name.partition("/")[0]
        of_study = folder if folder in tasks else task
        groups[model, of_study, name, split].append(make_row(same, diverged[configuration]))
    result = []
    for (model, task, name, split), unpooled in sorted(groups.items()):
        rows = pool_rank_maps(unpooled)
        metric = rows[0].runs[0].summary["metric"]
        higher = metric.get("higher_is_better") is not False
        for targets in sorted({row.targets for row in rows if row.ranks}) or [""]:
            chosen = [row for row in rows if not row.ranks or row.targets == targets]
            table = Table(model, task, targets, name, split, higher, tuple(chosen))
            result.append(_complete(table, (rates or {}).get(task, {})))
    return result


def searches(table: Table) -> list[Search]:
    """The search of every kind of row at its ranks, over at least one rate; for equal rates, the one that is chosen."""
    tried: dict[tuple[str, ...], dict[float, Row]] = {
        (table.kinds[row], *row.requested_ranks): {} for row in table.rows
    }
    for row in table.chosen_first(table.rows):
        if (rate := formats.as_number(row.settings.get("train.lr"))) is not None:
            tried[table.kinds[row], *row.requested_ranks].setdefault(rate, row)
    chosen = [(rates, next(iter(rates.values()))) for rates in tried.values() if rates]  # the chosen one comes first
    return [Search(kind_and_ranks(table, best), dict(sorted(rates.items())), best) for rates, best in chosen]


def relative_time(row: Row, baseline: Row | None) -> float | None:
    """Time per step relative to the baseline's, None unless both were measured on the same single device."""
    return relative_cost(row, baseline, attrgetter("step_ms"))


def relative_cost(row: Row, baseline: Row | None, cost: Callable[[Row], float | None]) -> float | None:
    """A row's cost relative to the baseline's, None unless both were measured on the same single device."""
    if baseline is None or (ours := cost(row)) is None or not (theirs := cost(baseline)):
        return None
    devices = row.devices | baseline.devices
    return ours / theirs if len(devices) == 1 and "unknown" not in devices else None


def kind_and_ranks(table: Table, row: Row) -> str:
    """A row's name without its learning rate: `adalora 12 → 8, allocator uniform`."""
    if not row.ranks:
        return table.kinds[row]
    method, *words = table.kinds[row].split(", ", 1)
    return ", ".join([f"{method} {formats.ranks(row.initial_rank, row.final_rank)}", *words])


def _complete(table: Table, rates: Mapping[str, Any]) -> Table:
    """Complete the table: order its rows, choose its settings, name its rows and find each row's baseline and those of
    each arm."""
    rows = in_order(table.rows)
    settings = differing(rows)
    return replace(
        table,
        rows=rows,
        settings=settings,
        labels=labels(rows, settings),
        kinds=kinds(rows, settings),
        baselines=baselines(table.chosen_first(rows), rows),
        budgets={row: budget(row) for row in rows},
        arms=_arms(rows, rates),
    )


def _arms(rows: Iterable[Row], rates: Mapping[str, Any]) -> dict[str, list[Row]]:
    """The rows of each arm. Of several, those at the learning rate that its trials chose, if that is known."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.arm:
            found[row.arm].append(row)
    for arm, several in found.items():
        if choice := rates.get(arm) or rates.get(arm.partition("@")[0]):
            chosen = [row for row in several if formats.as_number(row.settings.get("train.lr")) == choice["rate"]]
            found[arm] = chosen or several
    return dict(found)


def _all_but_learning_rate(row: Row) -> Hashable:
    """A key that the trials of one search share; a row whose settings cannot be read has a unique key."""
    rest = sorted(item for item in row.visible.items() if item[0] != "train.lr")
    return (row.method, row.arm, row.requested_ranks, None if row.settings else row.configuration, *rest)
