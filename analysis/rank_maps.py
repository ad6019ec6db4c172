"""Compares adaptive runs with their rank maps, retrained or shuffled, to separate the benefit of the final map from
that of adapting it during training.

A pair is an adaptive run and a run with its rank map and its seed: head, data and data order are the same in both
(common random numbers). Several shuffles of one map count with their mean, so that a pair remains a pair.
"""

from collections import defaultdict
from statistics import fmean

from analysis import formats
from analysis.load import Run
from analysis.rows import Row, source
from analysis.tables import Table
from analysis.verdicts import Comparison, compare_by_key

TITLE = "Map or dynamics? An adaptive run, its rank map retrained from step 0, and the map shuffled"
ARMS = {"none": "map", "within_family": "map shuffled within families", "all": "map shuffled"}  # by ranks_shuffle

RunsBySource = dict[str, list[Run]]


def map_or_dynamics(table: Table) -> list[Comparison]:
    """Adaptive runs against their maps, and both against each kind of shuffle, for every row whose map was
    retrained."""
    comparisons, trained = [], retrained_maps(table)
    for row, arms in trained.items():
        adaptive, label = {run.folder.name: [run] for run in row.runs}, _label(row)
        if sum(_label(other) == label for other in trained) > 1:
            label = table.labels[row]
        if "none" in arms:
            comparisons.append(_compare(label, "adaptive", "map", adaptive, arms["none"], "its map"))
        for arm in ("within_family", "all"):
            if arm in arms and "none" in arms:
                comparisons.append(_compare(label, "map", ARMS[arm], arms["none"], arms[arm]))
            if arm in arms:
                comparisons.append(_compare(label, "adaptive", ARMS[arm], adaptive, arms[arm]))
    return comparisons


def retrained_maps(table: Table) -> dict[Row, dict[str, RunsBySource]]:
    """{adaptive row: {kind of shuffle: {folder of the adaptive run: the runs with its map and its seed}}}."""
    adaptive = {run.folder.name: (row, run.seed) for row in table.rows for run in row.runs if not row.is_rank_map}
    trained: dict[Row, dict[str, RunsBySource]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for map_row in (row for row in table.rows if row.is_rank_map):
        arm = map_row.settings.get("ranks_shuffle", "")
        for run in map_row.runs:
            row, seed = adaptive.get(origin := source(run), (None, None))
            if row is not None and arm in ARMS and run.seed == seed:
                trained[row][arm][origin].append(run)
    return trained


def _compare(
    label: str, one: str, other: str, ours: RunsBySource, theirs: RunsBySource, against: str = ""
) -> Comparison:
    """Mean scores of one kind of run against those of another, one pair per adaptive run."""
    runs = [run for kind in (ours, theirs) for origin in ours if origin in theirs for run in kind[origin]]
    scores, others = (
        {origin: fmean(run.score[1] for run in same) for origin, same in kind.items()} for kind in (ours, theirs)
    )
    return compare_by_key(f"{label}, {one}", against or other, (one, other), scores, others, runs)


def _label(row: Row) -> str:
    return f"{row.method} {formats.ranks(row.initial_rank, row.final_rank)}"
