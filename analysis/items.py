"""Per-row predictions: how much of a difference's uncertainty comes from the seeds and how much from the test rows, and
McNemar's test for a pair of runs."""

import zipfile
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from adarank.runs.files import PREDICTIONS
from analysis import formats, stats
from analysis.load import Run
from analysis.tables import Lines
from analysis.verdicts import Verdict

TITLE = "Seeds and test rows: standard errors of the mean difference in accuracy"
HEADER = ("comparison", "seeds", "test rows", "difference", "error over seeds", "error over rows", "error over both")
PAIRS_TITLE = "Pairs of runs, by McNemar's exact test on the test rows"
PAIRS_HEADER = ("comparison", "seed", "only the first right", "only the second right", "p")


def right(run: Run) -> NDArray[np.bool_] | None:
    """Whether the run's last checkpoint predicts each test row's class, [rows]; None if predictions.npz has no classes
    or cannot be read."""
    try:
        with np.load(run.folder / PREDICTIONS, allow_pickle=False) as content:
            label, prediction = content["label"], content["prediction"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError):
        return None
    if label.shape != prediction.shape or not all(np.issubdtype(x.dtype, np.integer) for x in (label, prediction)):
        return None
    return np.asarray(label == prediction)


def pairs(verdict: Verdict) -> list[tuple[int, NDArray[np.bool_], NDArray[np.bool_]]]:
    """(seed, whether the first method is right on each row, the same for the other) for the comparison's seeds with
    predictions of both on the same number of rows."""
    if verdict.comparison.rows is None:
        return []
    ours, theirs = ({run.seed: run for run in row.runs} for row in verdict.comparison.rows)
    seeds = sorted({run.seed for run in verdict.comparison.runs})
    found = [(seed, right(ours[seed]), right(theirs[seed])) for seed in seeds]
    return [(seed, a, b) for seed, a, b in found if a is not None and b is not None and a.shape == b.shape]


def rows(verdicts: Sequence[Verdict]) -> Lines:
    """A line for HEADER for every comparison with predictions of at least two seeds on the same test rows."""
    lines, runs = [], []
    for verdict in verdicts:
        found = [(a, b) for _, a, b in pairs(verdict)]
        if len(found) < 2 or len({a.size for a, _ in found}) > 1:
            continue
        gain = np.array([a.astype(float) - b for a, b in found])  # [seeds, rows]
        n, m = gain.shape
        cells = [str(n), formats.count(m), formats.metric(float(gain.mean()), "+")]
        name = f"{verdict.comparison.label} − {verdict.comparison.against}"
        lines.append([name, *cells, *(formats.metric(float(error)) for error in errors(gain))])
        runs.append(list(verdict.comparison.runs))
    return lines, runs


def errors(gain: NDArray[np.float64]) -> tuple[float, float, float]:
    """The standard errors of the mean of `gain` [seeds, rows] over seeds, over rows, and over both.

    The first two both contain the residual, the interaction of seeds and rows. The third, for new seeds and new rows,
    counts it once: √(seeds² + rows² − residual²), in a two-way layout with random effects."""
    n, m = gain.shape
    by_seed, by_row = gain.mean(1), gain.mean(0)
    left = ((gain - by_seed[:, None] - by_row + gain.mean()) ** 2).sum() / ((n - 1) * (m - 1) * n * m)
    seeds, rows = float(by_seed.var(ddof=1) / n), float(by_row.var(ddof=1) / m)
    return seeds**0.5, rows**0.5, max(seeds, rows, seeds + rows - float(left)) ** 0.5


def mcnemar(verdicts: Sequence[Verdict]) -> Lines:
    """A line for PAIRS_HEADER for every pair of runs with predictions."""
    lines, runs = [], []
    for verdict in verdicts:
        for seed, a, b in pairs(verdict):
            name = f"{verdict.comparison.label} − {verdict.comparison.against}"
            won, lost = int((a & ~b).sum()), int((b & ~a).sum())
            lines.append([name, str(seed), str(won), str(lost), formats.probability(stats.mcnemar_p(a, b))])
            runs.append([run for run in verdict.comparison.runs if run.seed == seed])
    return lines, runs
