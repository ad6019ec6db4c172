"""Whether the scores mean anything: their order beside the true rise of the loss, as experiments/probe.py found it.

The rise has a sign: without a triplet the loss may fall. A score can foresee how much a triplet changes without foreseeing
whether for the better, so each stands beside the rise and beside its size, abs(rise).
"""

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis import formats, stats
from analysis.files import number
from analysis.load import Run
from analysis.stats.paired import mean_ranks
from analysis.tables import Table

SHARE = 0.25  # top b: the best quarter of the triplets
TITLE = "Do the scores mean anything? Each beside the rise of the dev loss without the triplet"
HEADER = ("run", "score", "rank correlation", "95% BCa", "with its size", "95% BCa", "overlap of the top quarter", "95% BCa",
          "chance", "triplets")  # fmt: skip
HALVES = "(the rise, half of the rows against half)"

Interval = tuple[float, float] | None


class Worth(NamedTuple):
    """One score in one run. correlation: Spearman's with the rise of the loss; size: that with abs(rise); overlap: share of
    the top b triplets by rise that are in the top b by score, chance = b / triplets; intervals over resampled triplets."""

    score: str
    correlation: float | None
    correlation_interval: Interval
    size: float | None
    size_interval: Interval
    overlap: float
    overlap_interval: Interval
    chance: float
    triplets: int


class Probed(NamedTuple):
    """rise: of the loss without each triplet [triplets]; halves: the same over either half of the rows, or nothing; scores:
    {name: [triplets]}."""

    rise: NDArray[np.float64]
    halves: list[NDArray[np.float64]]
    scores: dict[str, NDArray[np.float64]]


class Agreement(NamedTuple):
    """Of a score with the rise: Spearman's correlation, that with the rise's size, overlap of the top b, and what chance
    would give of it. size: None where every rise has the same size."""

    correlation: float
    size: float | None
    overlap: float
    chance: float


def content(run: Run) -> Probed | None:
    """The run's probe.json; None where there is no such file to read."""
    try:
        found = json.loads((run.folder / "probe.json").read_bytes())
        return Probed(
            _numbers(found["rise"]),
            [_numbers(half) for half in found.get("halves") or ()],
            {str(name): _numbers(values) for name, values in found["scores"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def read(run: Run) -> list[Worth]:
    """Every score of the run's probe.json, the best correlated first; none where there is no such file to read. Before
    them the rise itself, over half of the rows against the other half: how well so many rows tell it."""
    if (found := content(run)) is None:
        return []
    rise, halves, scores = found
    generator = np.random.default_rng(0)
    worth = [measure(name, x, rise, generator) for name, x in scores.items() if len(x) == len(rise) > 3]
    worth.sort(key=lambda w: 2.0 if w.correlation is None else -w.correlation)
    if len(halves) == 2 and len(halves[0]) == len(halves[1]) > 3:
        worth.insert(0, measure(HALVES, halves[0], halves[1], generator, np.abs(halves[0])))
    return worth


def measure(
    name: str,
    score: NDArray[np.float64],
    rise: NDArray[np.float64],
    generator: np.random.Generator,
    size: NDArray[np.float64] | None = None,
) -> Worth:
    """Agreement of a score [triplets] with the rise [triplets]; size: what is set beside abs(rise), the score unless it has
    a sign too. Intervals keep the ranks of the whole: triplets are resampled with them."""
    top = _top(rise)
    places = np.arange(len(rise), dtype=np.float64)
    x, y = stats.ranks.membership(score, top), stats.ranks.membership(rise, top)

    def overlap(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
        one, other = (v[drawn[..., 0].astype(np.int64)] for v in (x, y))
        return np.asarray((one * other).sum(-1) / np.maximum(other.sum(-1), 1e-12))

    correlation, correlation_interval = _correlation(score, rise, generator)
    of_size, size_interval = _correlation(score if size is None else size, np.abs(rise), generator)
    return Worth(
        score=name,
        correlation=correlation,
        correlation_interval=correlation_interval,
        size=of_size,
        size_interval=size_interval,
        overlap=stats.top_overlap(rise, score, top),
        overlap_interval=stats.bootstrap_interval(places, generator, overlap, samples=2_000),
        chance=top / len(rise),
        triplets=len(rise),
    )


def agreement(score: NDArray[np.float64], rise: NDArray[np.float64]) -> Agreement | None:
    """Agreement of a score [triplets] with the rise [triplets]; None where either is constant."""
    correlation, top = stats.spearman(score, rise), _top(rise)
    if correlation is None:
        return None
    size, overlap = stats.spearman(score, np.abs(rise)), stats.top_overlap(rise, score, top)
    return Agreement(correlation, size, overlap, top / len(rise))


def rows(table: Table) -> tuple[list[list[str]], list[list[Run]]]:
    """A row of strings for HEADER, and its run, of every run and score; none where no run of the table was probed."""
    shown, runs = [], []
    for row in table.rows:
        for run in row.runs:
            for worth in read(run):
                shown.append([f"{table.labels[row]}, seed {run.seed}", *_cells(worth)])
                runs.append([run])
    return shown, runs


def _correlation(
    score: NDArray[np.float64], rise: NDArray[np.float64], generator: np.random.Generator
) -> tuple[float | None, Interval]:
    """Spearman's with its BCa interval; None where either is constant."""
    if (found := stats.spearman(score, rise)) is None:
        return None, None
    a, b = mean_ranks(score), mean_ranks(rise)

    def correlation(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
        one, other = (v[drawn[..., 0].astype(np.int64)] for v in (a, b))
        one, other = (v - v.mean(-1, keepdims=True) for v in (one, other))
        length = np.sqrt((one**2).sum(-1) * (other**2).sum(-1))
        return np.asarray((one * other).sum(-1) / np.where(length > 0, length, 1.0))

    places = np.arange(len(rise), dtype=np.float64)
    return found, stats.bootstrap_interval(places, generator, correlation, samples=2_000)


def _top(rise: NDArray[np.float64]) -> int:
    return max(1, round(SHARE * len(rise)))


def _cells(worth: Worth) -> list[str]:
    return [
        worth.score,
        formats.metric(worth.correlation, "+"),
        formats.span(worth.correlation_interval),
        formats.metric(worth.size, "+"),
        formats.span(worth.size_interval),
        formats.metric(worth.overlap),
        formats.span(worth.overlap_interval),
        formats.metric(worth.chance),
        str(worth.triplets),
    ]


def _numbers(values: Sequence[object]) -> NDArray[np.float64]:
    """[n] float64; ValueError where one is no finite number."""
    found = [number(value) for value in values]
    if any(value is None for value in found):
        raise ValueError("not a finite number")
    return np.array(found, dtype=np.float64)
