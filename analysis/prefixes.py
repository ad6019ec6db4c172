"""Every prefix rank of one run: the metric against rank, and the area under it compared with that of separately tuned
runs. The same for the best approximation of its ΔW at these ranks (`svd`).

All values are those of the best checkpoint, whose adapter is in the run's folder.
"""

from collections.abc import Mapping
from typing import Any

from adarank.runs.files import PREFIXES
from analysis import curves, formats, stats
from analysis.load import Run, finite, read_measurement
from analysis.rows import Row
from analysis.tables import Lines, Table
from analysis.verdicts import Comparison, compare_by_key

TITLE = (
    "AURAC from one run: the mean score over log2 rank of its prefix ranks, and LoRA's from a tuned run for each rank "
    "(all at the best checkpoint)"
)
HEADER = (
    "method", "prefix ranks", "AURAC from one run", "cut by SVD", "seeds", "LoRA, a run for each rank", "its seeds"
)  # fmt: skip
AGAINST = "AURAC from one run against LoRA's from a tuned run for each rank, over the same ranks"


def read(run: Run, svd: bool = False) -> dict[float, float]:
    """{rank: score} of the run's prefixes.json, on the split that the run is judged by; empty if there is none that
    can be read. svd: of the best approximation of ΔW instead of the first triplets."""
    return read_measurement(run, PREFIXES, lambda content: _parse(run, content, svd)) or {}


def by_seed(row: Row, svd: bool = False) -> dict[int, dict[float, float]]:
    """{seed: {rank: score}} over the ranks, ascending, that all measured runs of the row have; at least two, else
    empty."""
    measured = {run.seed: scores for run in row.runs if (scores := read(run, svd))}
    common = sorted(set.intersection(*(set(scores) for scores in measured.values()))) if measured else []
    return {seed: {r: scores[r] for r in common} for seed, scores in measured.items()} if len(common) > 1 else {}


def areas(measured: Mapping[int, Mapping[float, float]]) -> dict[int, float]:
    """{seed: AURAC} for the result of `by_seed`."""
    return {seed: stats.area_under_curve(list(s), list(s.values())) for seed, s in measured.items()}


def rows(table: Table) -> Lines:
    """A line for HEADER for every row with measured prefixes."""
    lines, runs = [], []
    for row, measured in ((row, measured) for row in table.rows if (measured := by_seed(row))):
        ranks = list(next(iter(measured.values())))
        found, cut = list(areas(measured).values()), list(areas(by_seed(row, svd=True)).values())
        beside = _lora(table, ranks)
        theirs = [] if beside is None else list(tuned_areas(beside[1]).values())
        words = [formats.interval(*stats.mean_interval(v)) if v else formats.BLANK for v in (found, cut, theirs)]
        counts = [str(len(found)), str(len(theirs)) if theirs else formats.BLANK]
        prefix_ranks = ", ".join(f"{r:g}" for r in ranks)
        lines.append([table.labels[row], prefix_ranks, *words[:2], counts[0], words[2], counts[1]])
        runs.append([run for run in row.runs if run.seed in measured])
    return lines, runs


def against_lora(table: Table) -> list[Comparison]:
    """Every row with measured prefixes against LoRA with a run for each of these ranks, paired by seed."""
    comparisons = []
    for row, measured in measured_rows(table).items():
        beside = _lora(table, list(next(iter(measured.values()))))
        if beside is not None and row not in beside[1].values():
            kind, by_rank = beside
            runs = [run for run in row.runs if run.seed in measured] + [
                r for other in by_rank.values() for r in other.runs
            ]
            names = (table.kinds[row], kind)
            comparisons.append(
                compare_by_key(table.labels[row], kind, names, areas(measured), tuned_areas(by_rank), runs)
            )
    return comparisons


def measured_rows(table: Table) -> dict[Row, dict[int, dict[float, float]]]:
    """{row: the result of `by_seed`} for the tuned rows with measured prefixes."""
    return {row: measured for row in table.tuned if (measured := by_seed(row))}


def at_best(row: Row) -> dict[int, float]:
    """{seed: value of the best checkpoint}, on the split by which the row's runs are judged."""
    return {run.seed: value for run in row.runs if (value := run.best_score) is not None}


def tuned_areas(by_rank: Mapping[float, Row]) -> dict[int, float]:
    """{seed: AURAC} of tuned runs, one per rank, for the seeds that every rank has."""
    scores = {rank: at_best(row) for rank, row in by_rank.items()}
    seeds = sorted(set.intersection(*map(set, scores.values())))
    return areas({seed: {rank: of_rank[seed] for rank, of_rank in scores.items()} for seed in seeds})


def _lora(table: Table, ranks: list[float]) -> tuple[str, dict[float, Row]] | None:
    """(LoRA's kind, its tuned row at each of `ranks`); None if one of them is missing."""
    kind, by_rank = curves.of_lora(curves.curves(table)) or ("", {})
    return (kind, {rank: by_rank[rank] for rank in ranks}) if set(ranks) <= by_rank.keys() else None


def _parse(run: Run, content: Any, svd: bool) -> dict[float, float]:
    measured = content.get("svd") if svd else content
    if content["metric"] != run.summary["metric"]["name"] or not measured:
        return {}
    scores = measured[run.score[0]]
    return {finite(rank): finite(score) for rank, score in zip(content["ranks"], scores, strict=True)}
