"""What a configuration was allowed, counted four ways: two methods can match in one and differ in the others."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from analysis.files import mean, number, read_counts
from analysis.load import Run


class Budget(NamedTuple):
    """Means over the seeds, None where unknown. initial, mean, final: triplets of all modules together, at creation,
    averaged over the training steps, at the end; parameters: exact, of the finished model beyond its frozen base."""

    initial: float | None
    mean: float | None
    final: float | None
    parameters: float | None


NAMES = ("initial triplets", "mean over training", "final triplets", "exact parameters")


def budget(runs: Sequence[Run], kept: float | None) -> Budget:
    """The budget of one configuration's runs; kept: parameters beyond the frozen base.

    The mean over training is that of the first seed with records: the schedule makes it, not the seed, and reading
    thousands of records files would take minutes.
    """
    ranks = [run.summary.get("rank") or {} for run in runs]
    finals = [sum(rank["final"].values()) if rank.get("final") else None for rank in ranks]
    starts = [_initial(rank) for rank in ranks]
    steps = number(runs[0].summary.get("steps"))
    records = next((r for run in runs if (r := read_counts(run.folder / "allocations.jsonl"))), [])
    return Budget(mean(starts), mean_over_training(records, starts[0], steps), mean(finals), kept)


def mean_over_training(records: Sequence[Mapping[str, Any]], start: float | None, steps: float | None) -> float | None:
    """The mean of the triplets kept over `steps` optimiser steps, `start` of them before the first allocation.

    An allocation follows its step, counted from 0, and holds from the next one on. Without any the start held
    throughout.
    """
    if start is None or not records:
        return start
    found = {number(r.get("step")): number(r.get("kept")) for r in records}
    changes = sorted((step + 1, kept) for step, kept in found.items() if step is not None and kept is not None)
    if not steps or not changes:
        return None
    places = [0.0, *(min(step, steps) for step, _ in changes), steps]
    held = [start, *(kept for _, kept in changes)]
    return sum(k * (b - a) for k, a, b in zip(held, places, places[1:], strict=False)) / steps


def ratios(one: Budget, other: Budget) -> list[float | None]:
    """`one` in units of `other`, in the order of the fields."""
    return [a / b if a is not None and b else None for a, b in zip(one, other, strict=True)]


def _initial(rank: Mapping[str, Any]) -> float | None:
    initial, final = rank.get("initial"), rank.get("final")
    if isinstance(initial, dict):
        return sum(value for value in map(number, initial.values()) if value is not None)
    each = number(initial)
    return each * len(final) if each is not None and final else None
