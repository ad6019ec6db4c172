"""Is it the rank map, or how training came to it? An adaptive run, its map retrained from step 0, its map shuffled.

A pair is an adaptive run and what was made of its own map with its own seed: head, data and their order are the same in
both (common random numbers). Of several shuffles of one map the mean counts, so that a pair stays a pair.
"""

from collections import defaultdict
from statistics import fmean

from analysis import formats
from analysis.load import Run
from analysis.maps import is_map, source
from analysis.pairs import Comparison, by_key
from analysis.rows import Row
from analysis.tables import Table
from analysis.verdicts import MARGIN, Verdict, judge, unit_scale

TITLE = "Map or dynamics? An adaptive run, its rank map retrained from step 0, and the map shuffled"
ARMS = {"none": "map", "within_family": "map shuffled within families", "all": "map shuffled"}

Origins = dict[str, list[Run]]


def verdicts(table: Table) -> list[Verdict]:
    """Adaptive against its map, and its map against every kind of shuffle, for each adaptive row whose map was retrained;
    none where there is none."""
    comparisons, groups = [], found(table)
    for row, arms in groups.items():
        adaptive, label = {run.folder.name: [run] for run in row.runs}, _label(row)
        if sum(_label(other) == label for other in groups) > 1:
            label = table.labels[row]
        if "none" in arms:
            names = ("adaptive", "map")
            comparisons.append(_compare(f"{label}, adaptive", "its map", names, adaptive, arms["none"]))
        for arm in ("within_family", "all"):
            if arm not in arms:
                continue
            if "none" in arms:
                names = ("map", ARMS[arm])
                comparisons.append(_compare(f"{label}, map", ARMS[arm], names, arms["none"], arms[arm]))
            names = ("adaptive", ARMS[arm])
            comparisons.append(_compare(f"{label}, adaptive", ARMS[arm], names, adaptive, arms[arm]))
    return judge(comparisons, MARGIN if unit_scale(table) else None, table.higher_is_better) if comparisons else []


def found(table: Table) -> dict[Row, dict[str, Origins]]:
    """{adaptive row: {arm: {adaptive run's folder: the runs of its map with its seed}}}."""
    rows = {run.folder.name: (row, run.seed) for row in table.rows for run in row.runs if not is_map(row)}
    trained: dict[Row, dict[str, Origins]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for mapped in filter(is_map, table.rows):
        arm = mapped.settings.get("allocator.shuffle", "")
        for run in mapped.runs:
            row, seed = rows.get(origin := source(run), (None, None))
            if row is not None and arm in ARMS and run.seed == seed:
                trained[row][arm][origin].append(run)
    return trained


def _compare(label: str, against: str, methods: tuple[str, str], one: Origins, other: Origins) -> Comparison:
    """Mean scores of the runs of one kind against those of another, an adaptive run a pair."""
    runs = [run for kind in (one, other) for origin in one if origin in other for run in kind[origin]]
    return by_key(label, against, methods, _means(one), _means(other), runs)


def _means(kind: Origins) -> dict[str, float]:
    return {origin: fmean(run.score[1] for run in runs) for origin, runs in kind.items()}


def _label(row: Row) -> str:
    return f"{row.method} {formats.ranks(row.initial_rank, row.final_rank)}"
