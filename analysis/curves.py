"""Scores over a range: over ranks (AURAC), over costs and over learning rates."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from statistics import geometric_mean

import numpy as np

from analysis import formats, stats
from analysis.load import FolderError, Run
from analysis.rows import Row
from analysis.tables import Lines, Search, Table
from analysis.verdicts import Comparison, compare_by_key

FEWEST = 4  # budgets that make a curve
TITLE = "AURAC: the mean score over log2 rank, from the smallest rank to the largest"
HEADER = ("method", "ranks", "AURAC", "seeds")
AGAINST = "AURAC against LoRA's over the same ranks"
COST = "At equal cost (parameters kept × time of a step, from a benchmark): the mean score over the costs both cover"
POINT = 0.01  # rates within a point of the best count as equally good, on a metric within -1..1


def curves(table: Table) -> dict[str, dict[float, Row]]:
    """{kind of row: {requested rank: the row best on dev}}, ascending, for the kinds with at least FEWEST ranks."""
    best = table.best(lambda row: (table.kinds[row], row.requested_ranks[:1]))
    by_kind: dict[str, dict[float, Row]] = {}
    for row in best:
        if (rank := formats.as_number(row.requested_ranks[0] if row.ranks else None)) and rank > 0:
            by_kind.setdefault(table.kinds[row], {})[rank] = row
    return {kind: dict(sorted(rows.items())) for kind, rows in by_kind.items() if len(rows) >= FEWEST}


def of_lora(found: Mapping[str, dict[float, Row]]) -> tuple[str, dict[float, Row]] | None:
    """LoRA's kind and curve among `found`, {kind: {rank or cost: row}}."""
    return next(((kind, rows) for kind, rows in found.items() if next(iter(rows.values())).method == "lora"), None)


def areas(rows: Mapping[float, Row]) -> dict[int, float]:
    """{seed: AURAC} over `rows` by rank, for the seeds that every rank has."""
    seeds = set.intersection(*(set(row.scores) for row in rows.values()))
    return {
        seed: stats.area_under_curve(list(rows), [row.scores[seed] for row in rows.values()]) for seed in sorted(seeds)
    }


def rows(table: Table) -> Lines:
    """A line for HEADER for every kind of row with a curve."""
    lines, runs = [], []
    for kind, by_rank in curves(table).items():
        if found := list(areas(by_rank).values()):
            ranks = ", ".join(f"{rank:g}" for rank in by_rank)
            lines.append([kind, ranks, formats.interval(*stats.mean_interval(found)), str(len(found))])
            runs.append(_runs(by_rank))
    return lines, runs


def against_lora(table: Table) -> list[Comparison]:
    """Every kind's AURAC against LoRA's, over the ranks that both have, paired by seed."""
    found = curves(table)
    if (baseline := of_lora(found)) is None:
        return []
    lora, of_baseline = baseline
    comparisons = []
    for kind, by_rank in found.items():
        common = by_rank.keys() & of_baseline.keys()
        if kind == lora or len(common) < FEWEST:
            continue
        ours, theirs = ({rank: rows[rank] for rank in sorted(common)} for rows in (by_rank, of_baseline))
        runs = _runs(ours) + _runs(theirs)
        comparisons.append(compare_by_key(kind, lora, (kind, lora), areas(ours), areas(theirs), runs))
    return comparisons


def at_equal_cost(table: Table, times: Mapping[str, float]) -> list[Comparison]:
    """Every kind's mean score against LoRA's over the range of costs that both cover, paired by seed.

    The cost of a configuration is its parameters kept times the time of its method's step (`times`, relative, from a
    benchmark, because times in a sweep reflect the machine's load). Scores between two budgets are interpolated over
    the logarithm of the cost.
    """
    found = {
        kind: {row.kept * times[row.method]: row for row in by_rank.values() if row.kept and row.method in times}
        for kind, by_rank in curves(table).items()
    }
    found = {kind: by_cost for kind, by_cost in found.items() if len(by_cost) >= FEWEST}
    if (baseline := of_lora(found)) is None:
        return []
    lora, of_baseline = baseline
    comparisons = []
    for kind, by_cost in found.items():
        if kind == lora:
            continue
        low, high = max(min(by_cost), min(of_baseline)), min(max(by_cost), max(of_baseline))
        if low < high:
            ours, theirs = (_between(rows, low, high) for rows in (by_cost, of_baseline))
            runs = _runs(by_cost) + _runs(of_baseline)
            comparisons.append(compare_by_key(kind, lora, (kind, lora), ours, theirs, runs))
    return comparisons


def read_times(path: Path) -> dict[str, float]:
    """{method: time of a step relative to LoRA's} from the JSON of experiments/bench/step.py, the geometric mean over
    its models. Raises FolderError if the file is not such a JSON."""
    try:
        models = json.loads(path.read_text(encoding="utf-8"))["models"].values()
        medians = [{name: float(ms) for name, ms in model["median_ms"].items()} for model in models]
        known = set.intersection(*(set(of_model) for of_model in medians))
        return {name: geometric_mean(of_model[name] / of_model["lora"] for of_model in medians) for name in known}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise FolderError(f"--times must be a JSON file of experiments/bench/step.py (got {path}).") from None


def rate_width(search: Search, higher_is_better: bool) -> tuple[float, float] | None:
    """The lowest and highest of the neighbouring rates around the best whose dev value is within a POINT of it."""
    rates, values = _known(search)
    if len(rates) < 2 or search.chosen.dev is None:
        return None
    loss = [(search.chosen.dev - value) * (1 if higher_is_better else -1) for value in values]
    low = high = rates.index(next(rate for rate, row in search.tried.items() if row is search.chosen))
    while low > 0 and loss[low - 1] <= POINT:
        low -= 1
    while high + 1 < len(rates) and loss[high + 1] <= POINT:
        high += 1
    return rates[low], rates[high]


def rate_area(search: Search) -> float | None:
    """The mean dev value over the logarithm of the rate, by trapezoids, that is, the expected value for a random
    rate."""
    rates, values = _known(search)
    return stats.area_under_curve(rates, values) if len(rates) > 1 and all(map(math.isfinite, np.log(rates))) else None


def _between(rows: Mapping[float, Row], low: float, high: float) -> dict[int, float]:
    """{seed: mean score over the logarithm of the costs from low to high} for the seeds that every row has."""
    costs = np.array(sorted(rows))
    grid = np.exp(np.unique(np.concatenate([np.log(costs[(costs > low) & (costs < high)]), np.log([low, high])])))
    seeds = set.intersection(*(set(row.scores) for row in rows.values()))
    curves = {seed: np.array([rows[cost].scores[seed] for cost in costs]) for seed in sorted(seeds)}
    return {
        seed: stats.area_under_curve(grid, np.interp(np.log(grid), np.log(costs), curve))
        for seed, curve in curves.items()
    }


def _known(search: Search) -> tuple[list[float], list[float]]:
    known = [(rate, row.dev) for rate, row in search.tried.items() if row.dev is not None]
    return [rate for rate, _ in known], [value for _, value in known]


def _runs(rows: Mapping[float, Row]) -> list[Run]:
    return [run for row in rows.values() for run in row.runs]
