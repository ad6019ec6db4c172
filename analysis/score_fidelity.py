"""Do importance scores predict the loss increase from removing a triplet? experiments/probe.py measures that increase.

The loss increase has a sign, since removing a triplet may lower the loss. A score can predict how much a triplet
matters without predicting in which direction, so each score is compared with the increase and with its magnitude. The
triplets of one run show what holds in that run; over seeds, every run counts once.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from statistics import fmean
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adarank.runs.files import PROBE
from analysis import formats, stats
from analysis.load import Run, finite, read_measurement
from analysis.rows import Row
from analysis.tables import Lines, Table, lines_per_run
from analysis.verdicts import Comparison, compare_by_key

SHARE = 0.25  # of the triplets, the ones that matter most: the top quarter
TITLE = "Score fidelity: each score against the dev-loss increase from removing a triplet"
HEADER = ("run", "score", "rank correlation", "95% BCa", "with its size", "95% BCa", "overlap of the top quarter",
          "95% BCa", "chance", "triplets")  # fmt: skip
HALVES = "(loss increase, half of the rows against half)"
SEEDS_TITLE = "Score fidelity over the seeds: mean and 95% interval"
SEEDS_HEADER = ("method", "score", "rank correlation", "with its size", "overlap of the top quarter", "chance", "runs")
Aspect = Literal["correlation", "size"]
AGAINST: dict[Aspect, str] = {
    "correlation": "Does another score predict the loss increase better than the pruning score? Rank correlations",
    "size": "The same for the magnitude of the loss increase",
}

Interval = tuple[float, float] | None
Array = NDArray[np.float64]


class Probe(NamedTuple):
    """loss_increase: without each triplet [triplets]; halves: over either half of the rows, or []; scores by name."""

    loss_increase: Array
    halves: list[Array]
    scores: dict[str, Array]


class Agreement(NamedTuple):
    """The agreement of a score with the loss increase: Spearman's correlation, that with the increase's magnitude, the
    overlap of the top quarter, and the overlap expected by chance. size: None if all magnitudes are equal."""

    correlation: float
    size: float | None
    overlap: float
    chance: float


class Fidelity(NamedTuple):
    """`Agreement` of one score in one run, with intervals over resampled triplets; None if something is constant."""

    score: str
    correlation: float | None
    correlation_interval: Interval
    size: float | None
    size_interval: Interval
    overlap: float
    overlap_interval: Interval
    chance: float
    triplets: int


def read(run: Run) -> Probe | None:
    """The run's probe.json; None if there is none that can be read."""
    return read_measurement(run, PROBE, _parse)


def fidelities(run: Run) -> list[Fidelity]:
    """Every score in the run's probe.json, the best correlated first; empty if there is none that can be read.

    The first entry is the loss increase itself, on half of the rows against the other half: its precision.
    """
    if (probe := read(run)) is None:
        return []
    increase, halves, scores = probe
    generator = np.random.default_rng(0)
    result = [measure(name, x, increase, generator) for name, x in scores.items() if len(x) == len(increase) > 3]
    result.sort(key=lambda f: 2.0 if f.correlation is None else -f.correlation)
    if len(halves) == 2 and len(halves[0]) == len(halves[1]) > 3:
        result.insert(0, measure(HALVES, halves[0], halves[1], generator, np.abs(halves[0])))
    return result


def measure(
    name: str, score: Array, increase: Array, generator: np.random.Generator, size: Array | None = None
) -> Fidelity:
    """Agreement of a score [triplets] with the loss increase [triplets]. size: the values to compare with
    abs(increase), by default the score itself. Resampled triplets keep the ranks that they have in the full set."""
    top = _top(increase)
    x, y = stats.ranks.membership(score, top), stats.ranks.membership(increase, top)

    def overlap(drawn: NDArray[np.int64]) -> Array:
        return np.asarray((x[drawn] * y[drawn]).sum(-1) / np.maximum(y[drawn].sum(-1), 1e-12))

    correlation, correlation_interval = _correlation(score, increase, generator)
    of_size, size_interval = _correlation(score if size is None else size, np.abs(increase), generator)
    return Fidelity(
        score=name,
        correlation=correlation,
        correlation_interval=correlation_interval,
        size=of_size,
        size_interval=size_interval,
        overlap=stats.top_overlap(increase, score, top),
        overlap_interval=_interval(len(increase), generator, overlap),
        chance=top / len(increase),
        triplets=len(increase),
    )


def agreement(score: Array, increase: Array) -> Agreement | None:
    """Agreement of a score [triplets] with the loss increase [triplets]; None if either is constant."""
    correlation, top = stats.spearman(score, increase), _top(increase)
    if correlation is None:
        return None
    size, overlap = stats.spearman(score, np.abs(increase)), stats.top_overlap(increase, score, top)
    return Agreement(correlation, size, overlap, top / len(increase))


def agreements(row: Row) -> dict[str, dict[int, Agreement]]:
    """{score: {seed: agreement}} for the row's probed runs in which the score varies, the best correlated first."""
    by_score: dict[str, dict[int, Agreement]] = defaultdict(dict)
    for run in row.runs:
        if (probe := read(run)) is None:
            continue
        for name, score in probe.scores.items():
            enough = len(score) == len(probe.loss_increase) > 3
            if enough and (value := agreement(score, probe.loss_increase)) is not None:
                by_score[name][run.seed] = value
    return dict(sorted(by_score.items(), key=lambda item: -fmean(value.correlation for value in item[1].values())))


def rows(table: Table) -> Lines:
    """A line for HEADER for every run and score."""
    return lines_per_run(table, lambda run: map(_cells, fidelities(run)))


def over_seeds(table: Table) -> Lines:
    """A line for SEEDS_HEADER for every score of a configuration with several probed runs."""
    lines, runs = [], []
    for row in table.rows:
        for name, by_seed in agreements(row).items():
            if len(by_seed) < 2:
                continue
            values = list(by_seed.values())
            sizes = [value.size for value in values if value.size is not None]
            columns = [[value.correlation for value in values], sizes, [value.overlap for value in values]]
            spans = [formats.interval(*stats.mean_interval(column)) if column else formats.BLANK for column in columns]
            chance = formats.metric(fmean(value.chance for value in values))
            lines.append([table.labels[row], name, *spans, chance, str(len(by_seed))])
            runs.append([run for run in row.runs if run.seed in by_seed])
    return lines, runs


def against_pruning_score(table: Table, aspect: Aspect = "correlation") -> list[Comparison]:
    """Every score against the one that pruned the runs; none if fewer than two runs were probed."""
    comparisons = []
    for row in table.rows:
        pruning_score = row.settings.get("score", "")
        values = {
            name: {seed: value for seed, of_seed in by_seed.items() if (value := getattr(of_seed, aspect)) is not None}
            for name, by_seed in agreements(row).items()
        }
        if len(values.get(pruning_score, ())) < 2:
            continue
        for name in (name for name in values if name != pruning_score):
            both = values[name].keys() & values[pruning_score].keys()
            runs, label = [run for run in row.runs if run.seed in both], f"{table.labels[row]}: {name}"
            names = (name, pruning_score)
            comparisons.append(compare_by_key(label, pruning_score, names, values[name], values[pruning_score], runs))
    return comparisons


def _correlation(score: Array, increase: Array, generator: np.random.Generator) -> tuple[float | None, Interval]:
    """Spearman's correlation with its BCa interval; None if either is constant."""
    if (value := stats.spearman(score, increase)) is None:
        return None, None
    a, b = stats.ranks.mean_ranks(score), stats.ranks.mean_ranks(increase)

    def correlation(drawn: NDArray[np.int64]) -> Array:
        x, y = (v[drawn] - v[drawn].mean(-1, keepdims=True) for v in (a, b))
        length = np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
        return np.asarray((x * y).sum(-1) / np.where(length > 0, length, 1.0))

    return value, _interval(len(increase), generator, correlation)


def _top(increase: Array) -> int:
    return max(1, round(SHARE * len(increase)))


def _interval(count: int, generator: np.random.Generator, statistic: Callable[[NDArray[np.int64]], Array]) -> Interval:
    """The BCa interval of a statistic of resampled indices [..., count]."""
    indices = np.arange(count, dtype=np.float64)
    return stats.bootstrap_interval(indices, generator, lambda x: statistic(x.astype(np.int64)), samples=2_000)


def _cells(fidelity: Fidelity) -> list[str]:
    name, correlation, interval, size, size_interval, overlap, overlap_interval, chance, triplets = fidelity
    cells = [name, formats.metric(correlation, "+"), formats.span(interval)]
    cells += [formats.metric(size, "+"), formats.span(size_interval)]
    cells += [formats.metric(overlap), formats.span(overlap_interval)]
    return [*cells, formats.metric(chance), str(triplets)]


def _parse(content: Any) -> Probe:
    return Probe(
        _array(content["rise"]),
        [_array(half) for half in content.get("halves") or ()],
        {str(name): _array(values) for name, values in content["scores"].items()},
    )


def _array(values: Iterable[Any]) -> Array:
    """[n] float64. Raises ValueError if a value is not a finite number."""
    return np.array([finite(value) for value in values], dtype=np.float64)
