"""Runs to tables: one table for each model, task, targets and metric, one row for each configuration."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean, median
from typing import Any

from analysis import formats, stats
from analysis.budgets import Budget, budget
from analysis.load import Run, identity, number, read_config, text

REFERENCE = "lora"  # times and verdicts are relative to this method
HIDDEN = {"seed", "method", "targets", "rank", "init_rank"}  # shown by other columns
HIDDEN |= {
    "out",
    "force",
    "retry",
    "checkpoint_seconds",
    "tracker",
    "experiment",
    "hydra",
    "device",
    "workers",
    "launcher",
}  # no effect
HIDDEN |= {"allocator.source"}  # a path; another one for every seed
TERMS = ("train.", "budget.")  # the terms of a comparison: shown even when they differ only between methods
FEW = 8  # rows that a figure of lines can hold


@dataclass(frozen=True, eq=False)
class Row:
    """One configuration over its seeds. Numbers are means over the seeds; None where no run has one.

    scores: {seed: test value, or last dev value}; best, last: dev values; scale: α/r in effect;
    ranks: {module: final rank}; kept: parameters needed beyond the frozen base; step_ms: median over the seeds, in ms;
    peak_mib: the largest.
    """

    configuration: str
    method: str
    targets: str
    runs: tuple[Run, ...]
    settings: dict[str, str]
    scores: dict[int, float]
    mean: float
    half_width: float | None
    best: float | None
    last: float | None
    scale: float | None
    initial_rank: float | None
    final_rank: float | None
    triplets: float | None
    budget: float | None
    ranks: dict[str, float]
    trainable: float | None
    kept: float | None
    step_ms: float | None
    peak_mib: float | None
    devices: frozenset[str]

    @property
    def adaptive(self) -> bool:
        """Whether ranks moved, over time or between modules."""
        return len({self.initial_rank, *self.ranks.values()}) > 1 if self.ranks else False


@dataclass(frozen=True)
class Table:
    """Rows that may stand side by side, in reading order.

    settings: the settings in which they differ; labels: a short name for each row; references: the LoRA row that a
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
    references: dict[Row, Row] = field(default_factory=dict)
    budgets: dict[Row, Budget] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return ", ".join([self.model, self.task, *([f"targets {self.targets}"] if self.targets else [])])

    def best_first(self, rows: Iterable[Row]) -> list[Row]:
        """Rows from the best dev value down; rows without one last."""
        sign = -1.0 if self.higher_is_better else 1.0
        return sorted(rows, key=lambda row: (row.best is None, sign * (row.best or 0.0)))

    @property
    def tuned(self) -> tuple[Row, ...]:
        """The rows to be judged: of those that differ in the learning rate alone, the one that is best on dev.

        A trial of a search is no method of its own: judged too, it would only make the others' correction harder.
        """
        best: dict[Any, Row] = {}
        for row in self.best_first(self.rows):
            rest = sorted(item for item in row.settings.items() if _visible(item[0]) and item[0] != "train.lr")
            alone = None if row.settings else row.configuration  # what cannot be read is like nothing else
            best.setdefault((row.method, row.initial_rank, formats.rank(row.final_rank), alone, *rest), row)
        return tuple(row for row in self.rows if row in best.values())

    @property
    def shown(self) -> tuple[Row, ...]:
        """The rows for figures that hold FEW: all, or of every method the best on dev, LoRA and the best first."""
        if len(self.rows) <= FEW:
            return self.rows
        best: dict[str, Row] = {}
        for row in self.best_first(self.rows):
            best.setdefault(row.method, row)
        chosen = sorted(best.values(), key=lambda row: row.method != REFERENCE)[:FEW]  # stable: the best stay in front
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
    for (model, task, name, split), rows in sorted(groups.items()):
        metric = rows[0].runs[0].summary["metric"]
        higher = metric.get("higher_is_better") is not False
        for targets in sorted({row.targets for row in rows if row.ranks}) or [""]:
            chosen = [row for row in rows if not row.ranks or row.targets == targets]
            result.append(_finish(Table(model, task, targets, name, split, higher, tuple(chosen))))
    return result


def make_row(runs: Sequence[Run]) -> Row:
    """The row of one configuration's finished runs, one a seed."""
    runs = tuple(sorted(runs, key=lambda run: run.seed))
    summary = runs[0].summary
    scores = {run.seed: run.score[1] for run in runs}
    mean, half_width = stats.mean_interval(list(scores.values()))
    finals = [(run.summary.get("rank") or {}).get("final") or {} for run in runs]
    ranks = {module: fmean(final.get(module, 0) for final in finals) for module in finals[0]}
    sizes = [run.summary.get("parameters") or {} for run in runs]
    steps = [number((run.summary.get("time") or {}).get("step_ms")) for run in runs]
    peaks = [number((run.summary.get("memory") or {}).get("peak_mib")) for run in runs]
    return Row(
        configuration=runs[0].configuration,
        method=summary["method"],
        targets=text(summary.get("targets")),
        runs=runs,
        settings=next((config for run in runs if (config := read_config(run.folder)) is not None), {}),
        scores=scores,
        mean=mean,
        half_width=half_width,
        best=_mean(number(run.summary["metric"].get("best")) for run in runs),
        last=_mean(number(run.summary["metric"].get("last")) for run in runs),
        scale=_mean(number(run.summary.get("scale")) for run in runs),
        initial_rank=_mean(_initial_rank(run.summary.get("rank") or {}) for run in runs),
        final_rank=fmean(ranks.values()) if ranks else None,
        triplets=sum(ranks.values()) if ranks else None,
        budget=_mean(number((run.summary.get("rank") or {}).get("budget_triplets")) for run in runs),
        ranks=ranks,
        trainable=_mean(number(size.get("trainable")) for size in sizes),
        kept=_mean(_kept(size) for size in sizes),
        step_ms=median(known) if (known := [step for step in steps if step is not None]) else None,
        peak_mib=max((peak for peak in peaks if peak is not None), default=None),
        devices=frozenset(text(run.summary.get("device") or "unknown") for run in runs),
    )


def relative_time(row: Row, reference: Row | None) -> float | None:
    """Time per step in units of the reference's, None unless both were measured on the same one device."""
    if reference is None or row.step_ms is None or not reference.step_ms:
        return None
    devices = row.devices | reference.devices
    return row.step_ms / reference.step_ms if len(devices) == 1 and "unknown" not in devices else None


def _finish(table: Table) -> Table:
    """The table with its rows in order, its settings chosen, its rows named and each row's reference found."""
    rows = tuple(sorted(table.rows, key=_order))
    settings = _differing(rows)
    labels = {row: _label(row, rows, settings) for row in rows}
    times = Counter(labels.values())
    labels = {row: label if times[label] == 1 else f"{label} ({row.configuration})" for row, label in labels.items()}
    budgets = {row: budget(row.runs, row.kept) for row in rows}
    return replace(
        table, rows=rows, settings=settings, labels=labels, references=_references(table, rows), budgets=budgets
    )


def _order(row: Row) -> tuple[Any, ...]:
    settings = sorted((key, _number_first(value)) for key, value in row.settings.items() if _visible(key))
    return (
        bool(row.ranks),
        row.method != REFERENCE,
        row.method,
        row.final_rank or 0.0,
        row.initial_rank or 0.0,
        settings,
    )


def _number_first(value: str) -> tuple[int, float, str]:
    """A sort key that puts 0.002 before 0.01 and numbers before words."""
    found = formats.as_number(value)
    return (1, 0.0, value) if found is None else (0, found, "")


def _references(table: Table, rows: Sequence[Row]) -> dict[Row, Row]:
    """For each row the LoRA row that shares its rank and most other settings, the best on dev among equals.

    The learning rate does not count: every method is compared at its own. A LoRA row is its own reference.
    """
    candidates = table.best_first(row for row in rows if row.method == REFERENCE)
    keys = {key for row in candidates for key in row.settings if _visible(key) and key != "train.lr"}
    keys = {key for key in keys if len({row.settings.get(key) for row in candidates}) > 1}

    def shared(row: Row, candidate: Row) -> tuple[bool, int]:
        same = sum(candidate.settings.get(key) == row.settings.get(key) for key in keys)
        return formats.rank(candidate.final_rank) == formats.rank(row.final_rank), same

    if not candidates:
        return {}
    return {  # max keeps the first of equals
        row: row if row.method == REFERENCE else max(candidates, key=partial(shared, row)) for row in rows
    }


def _differing(rows: Sequence[Row]) -> tuple[str, ...]:
    """Settings to show: those that vary within a method, and the terms of the comparison where they vary at all."""
    keys = sorted({key for row in rows for key in row.settings if _visible(key)})
    methods = {row.method for row in rows}

    def varies(key: str, among: Iterable[Row]) -> bool:
        return len({row.settings.get(key) for row in among if row.settings}) > 1

    chosen = [
        key
        for key in keys
        if (key.startswith(TERMS) and varies(key, rows))
        or any(varies(key, [row for row in rows if row.method == method]) for method in methods)
    ]
    return tuple(sorted(chosen, key=lambda key: (key != "train.lr", key)))


def _label(row: Row, rows: Sequence[Row], settings: Sequence[str]) -> str:
    """`adalora 12 → 8`, and the settings in which it differs from its method's other rows."""
    kin = [other for other in rows if other.method == row.method]
    own = [key for key in settings if len({other.settings.get(key) for other in kin}) > 1]
    parts = [row.method, *([formats.ranks(row.initial_rank, row.final_rank)] if row.ranks else [])]
    return ", ".join([" ".join(parts), *(f"{key.rpartition('.')[2]} {row.settings.get(key, '?')}" for key in own)])


def _visible(key: str) -> bool:
    return key not in HIDDEN and key.partition(".")[0] not in HIDDEN


def _kept(size: dict[str, Any]) -> float | None:
    trainable, adapter, kept = (number(size.get(key)) for key in ("trainable", "adapter", "kept"))
    return None if trainable is None or adapter is None or kept is None else trainable - adapter + kept


def _initial_rank(rank: dict[str, Any]) -> float | None:
    initial = rank.get("initial")
    return _mean(map(number, initial.values())) if isinstance(initial, dict) else number(initial)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
