"""Two methods' scores of the same seeds on the same tasks, side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from analysis.load import Run
from analysis.rows import Row

K = TypeVar("K")


@dataclass(frozen=True)
class Comparison:
    """Two methods' scores [seeds, tasks]; a pair is one seed on one task, NaN where either has no run.

    runs: those of the pairs, for each task the first method's, then the other's; none where they are not told.
    """

    label: str
    against: str
    methods: tuple[str, str]
    scores: NDArray[np.float64]
    others: NDArray[np.float64]
    runs: tuple[Run, ...] = ()

    @property
    def differences(self) -> NDArray[np.float64]:
        return self.scores - self.others


def compare(
    label: str,
    against: str,
    methods: tuple[str, str],
    pairs: Sequence[tuple[Row, Row]],
    last_checkpoint: bool = False,
) -> Comparison:
    """Row against reference, a task each; only seeds that both have make a pair. methods: what a verdict calls them.

    The scores are those of the checkpoint that is best on dev, or of the last one.
    """
    values = [[row.last_scores if last_checkpoint else row.scores for row in pair] for pair in pairs]
    common = [one.keys() & other.keys() for one, other in values]
    seeds = sorted(set[int]().union(*common))
    scores, others = np.full((2, len(seeds), len(pairs)), np.nan)
    for task, (one, other) in enumerate(values):
        for place, seed in enumerate(seeds):
            if seed in common[task]:
                scores[place, task], others[place, task] = one[seed], other[seed]
    runs = [
        run for pair, both in zip(pairs, common, strict=True) for row in pair for run in row.runs if run.seed in both
    ]
    return Comparison(label, against, methods, scores, others, tuple(runs))


def by_key(
    label: str,
    against: str,
    methods: tuple[str, str],
    scores: Mapping[K, float],
    others: Mapping[K, float],
    runs: Sequence[Run] = (),
) -> Comparison:
    """Values of one kind against values of another on one task: those with the same key make a pair. runs: where they
    come from."""
    both = [key for key in scores if key in others]

    def column(values: Mapping[K, float]) -> NDArray[np.float64]:
        return np.array([[values[key]] for key in both], dtype=np.float64).reshape(len(both), 1)

    return Comparison(label, against, methods, column(scores), column(others), tuple(runs))
