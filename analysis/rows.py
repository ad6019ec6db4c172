"""One row per configuration: means over its seeds, its settings, its budget."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePath
from statistics import fmean, median
from typing import Any, NamedTuple

from adarank.runs.files import ALLOCATIONS
from analysis import formats, stats
from analysis.load import SEED, Run, mean, number, read_config, read_counts, text

# Settings, or groups of settings, without their own column. First those that other columns show.
HIDDEN = {"seed", "method", "arm", "targets", "rank", "init_rank", "test"}
HIDDEN |= {"out", "force", "retry", "checkpoint_seconds", "tracker", "experiment", "hydra", "device", "workers",
           "launcher", "train.observe_scores"}  # no effect on the result  # fmt: skip
HIDDEN |= {"ranks_from", "ranks_shuffle", "ranks_shuffle_seed"}  # `Row.visible` expresses them in words
REPLACED_BY_MAP = ("allocator", "score", "schedule")  # a run with another run's rank map has none of these
SHUFFLE_SEED = "ranks_shuffle_seed"


class Budget(NamedTuple):
    """Means over the seeds, or None if unknown. initial, mean, final: triplets of all modules together, at creation,
    averaged over the training steps, at the end; parameters: the exact number in the finished model beyond its frozen
    base."""

    initial: float | None
    mean: float | None
    final: float | None
    parameters: float | None

    def relative_to(self, other: "Budget") -> list[float | None]:
        """This budget in units of `other`, in the order of the fields."""
        return [a / b if a is not None and b else None for a, b in zip(self, other, strict=True)]


@dataclass(frozen=True, eq=False)
class Row:
    """One configuration over its seeds. Numbers are means over the seeds; None if no run has one.

    scores: {seed: test value of the checkpoint by which the runs are judged, or last dev value}; other_scores: {seed:
    test value of the other checkpoint, best or last}, for the seeds that have both; collapsed: seeds whose score is at
    or below that of always predicting the most frequent class (`majority`); diverged: seeds of runs that ended in NaN,
    which have no score; mean, half_width: of `scores`; best, last: dev values; scale: the effective α/r; ranks:
    {module: final rank}; kept: parameters needed beyond the frozen base; step_ms: median over the seeds, in ms;
    peak_mib: the largest; arm: the study's name for it.
    """

    configuration: str
    method: str
    targets: str
    runs: tuple[Run, ...]
    settings: dict[str, str]
    scores: dict[int, float]
    other_scores: dict[int, float]
    majority: float | None
    collapsed: frozenset[int]
    diverged: frozenset[int]
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
    arm: str | None

    @cached_property
    def dev(self) -> float | None:
        """The value that chooses the row's learning rate: the mean dev value of the checkpoint by which its runs are
        judged."""
        return mean(run.dev for run in self.runs)

    @property
    def failures(self) -> tuple[int, int]:
        """(runs that collapsed or diverged, all runs)."""
        return len(self.collapsed | self.diverged), len(self.scores) + len(self.diverged)

    @property
    def adaptive(self) -> bool:
        """Whether ranks changed over time or differ between modules."""
        return len({self.initial_rank, *self.ranks.values()}) > 1 if self.ranks else False

    @property
    def requested_ranks(self) -> tuple[str, ...]:
        """The final and initial rank in the settings, or the resulting ones if the settings cannot be read; empty for a
        method without ranks. A method without a budget (SoRA) has a requested rank, but each run ends at a different
        one."""
        if not self.ranks:
            return ()
        if "rank" in self.settings:
            return (self.settings["rank"], self.settings.get("init_rank", ""))
        return (formats.rank(self.final_rank), formats.rank(self.initial_rank))

    @property
    def is_rank_map(self) -> bool:
        """Whether the runs trained with the final ranks of a finished run, shuffled or not."""
        return self.settings.get("ranks_from", "null") != "null"

    @cached_property
    def visible(self) -> dict[str, str]:
        """The settings that can affect the result and that no other column shows.

        "ranks_from" appears only for a rank map, in words, because the path differs between seeds.
        """
        settings = {key: value for key, value in self.settings.items() if not HIDDEN & {key, group(key)}}
        if not self.is_rank_map:
            return settings
        settings = {key: value for key, value in settings.items() if group(key) not in REPLACED_BY_MAP}
        shuffle = self.settings.get("ranks_shuffle", "none")
        if shuffle == "none":
            return settings | {"ranks_from": "retrained map"}
        seed = {SHUFFLE_SEED: self.settings[SHUFFLE_SEED]} if SHUFFLE_SEED in self.settings else {}
        words = "reversed map" if shuffle == "reversed" else f"map shuffled ({shuffle})"
        return settings | {"ranks_from": words} | seed


def group(key: str) -> str:
    """The group of a setting: "train" of "train.lr"."""
    return key.partition(".")[0]


def make_row(runs: Sequence[Run], diverged: Iterable[int] = ()) -> Row:
    """The row of one configuration's finished runs, one run per seed. diverged: the seeds of runs without a score."""
    runs = tuple(sorted(runs, key=lambda run: run.seed))
    summary = runs[0].summary
    scores = {run.seed: run.score[1] for run in runs}
    other_scores = {run.seed: value for run in runs if (value := run.other_score) is not None}
    majority = _majority(summary["metric"])
    center, half_width = stats.mean_interval(list(scores.values()))
    rank_records = [run.summary.get("rank") or {} for run in runs]
    final_ranks = [record.get("final") or {} for record in rank_records]
    ranks = {module: fmean(final.get(module, 0) for final in final_ranks) for module in final_ranks[0]}
    parameters = [run.summary.get("parameters") or {} for run in runs]
    steps = [number((run.summary.get("time") or {}).get("step_ms")) for run in runs]
    peaks = [number((run.summary.get("memory") or {}).get("peak_mib")) for run in runs]
    return Row(
        configuration=runs[0].configuration,
        method=summary["method"],
        targets=text(summary.get("targets")),
        runs=runs,
        settings=next((config for run in runs if (config := read_config(run.folder)) is not None), {}),
        scores=scores,
        other_scores=other_scores,
        majority=majority,
        collapsed=frozenset(
            seed for seed, score in scores.items() if majority is not None and score <= majority + 1e-9
        ),
        diverged=frozenset(diverged) - scores.keys(),
        mean=center,
        half_width=half_width,
        best=mean(number(run.summary["metric"].get("best")) for run in runs),
        last=mean(number(run.summary["metric"].get("last")) for run in runs),
        scale=mean(number(run.summary.get("scale")) for run in runs),
        initial_rank=mean(map(_mean_initial_rank, rank_records)),
        final_rank=fmean(ranks.values()) if ranks else None,
        triplets=sum(ranks.values()) if ranks else None,
        budget=mean(number(record.get("budget_triplets")) for record in rank_records),
        ranks=ranks,
        trainable=mean(number(count.get("trainable")) for count in parameters),
        kept=mean(map(_kept, parameters)),
        step_ms=median(known) if (known := [step for step in steps if step is not None]) else None,
        peak_mib=max((peak for peak in peaks if peak is not None), default=None),
        devices=frozenset(text(run.summary.get("device") or "unknown") for run in runs),
        arm=runs[0].arm,
    )


def budget(row: Row) -> Budget:
    """The budget of a configuration, counted four ways.

    The mean over training is that of the first seed with records, because it depends on the schedule and not on the
    seed.
    """
    ranks = [run.summary.get("rank") or {} for run in row.runs]
    finals = [sum(rank["final"].values()) if rank.get("final") else None for rank in ranks]
    starts = [_initial_triplets(rank) for rank in ranks]
    steps = number(row.runs[0].summary.get("steps"))
    records = next((r for run in row.runs if (r := read_counts(run.folder / ALLOCATIONS))), [])
    return Budget(mean(starts), mean_over_training(records, starts[0], steps), mean(finals), row.kept)


def mean_over_training(records: Sequence[Mapping[str, Any]], start: float | None, steps: float | None) -> float | None:
    """The number of triplets kept, averaged over `steps` optimiser steps; `start` of them before the first allocation.

    An allocation follows its step, counted from 0, and applies from the next step on; without any, `start` applies.
    """
    if start is None or not records:
        return start
    kept_at = {number(record.get("step")): number(record.get("kept")) for record in records}
    changes = sorted((step + 1, kept) for step, kept in kept_at.items() if step is not None and kept is not None)
    if not steps or not changes:
        return None
    bounds = [0.0, *(min(step, steps) for step, _ in changes), steps]
    counts = [start, *(kept for _, kept in changes)]
    return sum(k * (b - a) for k, a, b in zip(counts, bounds, bounds[1:], strict=False)) / steps


def source(run: Run) -> str:
    """The folder name of the run whose rank map this run trains with; "" if its settings name none."""
    return PurePath((read_config(run.folder) or {}).get("ranks_from", "")).name


def pool_rank_maps(rows: Iterable[Row]) -> list[Row]:
    """The rows, with rank maps that differ only in `ranks_from` pooled, since every seed trains its own run's map.

    The seed of the shuffle separates rows only if a training seed has several shuffles.
    """
    pooled, maps = [], defaultdict(list)
    for row in rows:
        if row.is_rank_map:
            maps[_map_key(row, {SHUFFLE_SEED})].append(row)
        else:
            pooled.append(row)
    for candidates in maps.values():
        if (joined := _pool(candidates)) is not None:
            pooled.append(joined)
            continue
        by_shuffle = defaultdict(list)
        for row in candidates:
            by_shuffle[_map_key(row, set())].append(row)
        for same_shuffle in by_shuffle.values():
            pooled += same_shuffle if (joined := _pool(same_shuffle)) is None else [joined]
    return pooled


def _map_key(row: Row, without: set[str]) -> Hashable:
    """The properties that pooled rows must share, including the configuration of the runs whose maps they have, and the
    arm or, outside a study, the triplets, since a table may hold maps of several budgets and methods."""
    settings: dict[str, Any] = {key: value for key, value in row.visible.items() if key not in without}
    of = SEED.sub("", source(row.runs[0]))
    return (row.method, row.targets, row.arm or row.triplets, of, *sorted(settings.items()))


def _pool(rows: list[Row]) -> Row | None:
    """The row of all their runs, with the settings they share; None if a seed would count twice."""
    if len(rows) == 1:
        return rows[0]
    runs = [run for row in rows for run in row.runs]
    diverged = {seed for row in rows for seed in row.diverged}
    if len({run.seed for run in runs}) < len(runs):
        return None
    shared = set.intersection(*(set(row.settings.items()) for row in rows))
    settings = {key: value for key, value in rows[0].settings.items() if (key, value) in shared or key == "ranks_from"}
    return replace(make_row(runs, diverged), settings=settings)


def _majority(metric: Mapping[str, Any]) -> float | None:
    """The metric's value for always predicting the most frequent class, or None if the run did not record it."""
    return number(metric.get("majority")) if metric.get("higher_is_better") is not False else None


def _kept(parameters: Mapping[str, Any]) -> float | None:
    trainable, adapter, kept = (number(parameters.get(key)) for key in ("trainable", "adapter", "kept"))
    return None if trainable is None or adapter is None or kept is None else trainable - adapter + kept


def _mean_initial_rank(rank: Mapping[str, Any]) -> float | None:
    initial = rank.get("initial")
    return mean(map(number, initial.values())) if isinstance(initial, dict) else number(initial)


def _initial_triplets(rank: Mapping[str, Any]) -> float | None:
    initial, final = rank.get("initial"), rank.get("final")
    if isinstance(initial, dict):
        return sum(value for value in map(number, initial.values()) if value is not None)
    each = number(initial)
    return each * len(final) if each is not None and final else None
