"""Scores over a range: over ranks (AURAC) and over learning rates."""

import math
from collections.abc import Mapping

import numpy as np

from analysis import formats, stats
from analysis.load import Run
from analysis.rows import Row
from analysis.tables import Lines, Search, Table
from analysis.verdicts import Comparison, compare_by_key

FEWEST = 4  # budgets that make a curve
TITLE = "AURAC: the mean score over log2 rank, from the smallest rank to the largest"
HEADER = ("method", "ranks", "AURAC", "seeds")
AGAINST = "AURAC against LoRA's over the same ranks"
POINT = 0.01  # rates within a point of the best do as well, on a metric within -1..1


def curves(table: Table) -> dict[str, dict[float, Row]]:
    """{kind of row: {requested rank: the row best on dev}}, ascending, of the kinds with FEWEST ranks or more."""
    best = table.best(lambda row: (table.kinds[row], row.requested_ranks[:1]))
    by_kind: dict[str, dict[float, Row]] = {}
    for row in best:
        if (rank := formats.as_number(row.requested_ranks[0] if row.ranks else None)) and rank > 0:
            by_kind.setdefault(table.kinds[row], {})[rank] = row
    return {kind: dict(sorted(rows.items())) for kind, rows in by_kind.items() if len(rows) >= FEWEST}


def areas(rows: Mapping[float, Row]) -> dict[int, float]:
    """{seed: AURAC} over `rows` by rank, of the seeds that every rank has."""
    seeds = set.intersection(*(set(row.scores) for row in rows.values()))
    return {
        seed: stats.area_under_curve(list(rows), [row.scores[seed] for row in rows.values()]) for seed in sorted(seeds)
    }


def rows(table: Table) -> Lines:
    """A line for HEADER of every kind of row with a curve."""
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
    lora = next((kind for kind, by_rank in found.items() if next(iter(by_rank.values())).method == "lora"), None)
    if lora is None:
        return []
    comparisons = []
    for kind, by_rank in found.items():
        common = by_rank.keys() & found[lora].keys()
        if kind == lora or len(common) < FEWEST:
            continue
        ours, theirs = ({rank: rows[rank] for rank in sorted(common)} for rows in (by_rank, found[lora]))
        runs = _runs(ours) + _runs(theirs)
        comparisons.append(compare_by_key(kind, lora, (kind, lora), areas(ours), areas(theirs), runs))
    return comparisons


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
    """The mean dev value over the logarithm of the rate, by trapezoids: what a rate drawn at random would reach."""
    rates, values = _known(search)
    return stats.area_under_curve(rates, values) if len(rates) > 1 and all(map(math.isfinite, np.log(rates))) else None


def _known(search: Search) -> tuple[list[float], list[float]]:
    known = [(rate, row.dev) for rate, row in search.tried.items() if row.dev is not None]
    return [rate for rate, _ in known], [value for _, value in known]


def _runs(rows: Mapping[float, Row]) -> list[Run]:
    return [run for row in rows.values() for run in row.runs]
