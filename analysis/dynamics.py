"""Is it the rank map, or how training came to it? An adaptive run, its map retrained from step 0, its map shuffled.

A pair is an adaptive run and what was made of its own map with its own seed: head, data and their order are the same in
both (common random numbers). Of several shuffles of one map the mean counts, so that a pair stays a pair.
"""

from collections import defaultdict
from statistics import fmean

from analysis import formats
from analysis.maps import is_map, source
from analysis.pairs import by_key
from analysis.rows import Row
from analysis.tables import Table
from analysis.verdicts import MARGIN, Verdict, judge, unit_scale

TITLE = "Map or dynamics? An adaptive run, its rank map retrained from step 0, and the map shuffled"
ARMS = {"none": "map", "within_family": "map shuffled within families", "all": "map shuffled"}


def verdicts(table: Table) -> list[Verdict]:
    """Adaptive against its map, and its map against every kind of shuffle, for each adaptive row whose map was retrained;
    none where there is none."""
    comparisons, groups = [], found(table)
    for row, arms in groups.items():
        adaptive, label = {run.folder.name: run.score[1] for run in row.runs}, _label(row)
        if sum(_label(other) == label for other in groups) > 1:
            label = table.labels[row]
        if "none" in arms:
            comparisons.append(by_key(f"{label}, adaptive", "its map", ("adaptive", "map"), adaptive, arms["none"]))
        for arm in ("within_family", "all"):
            if arm not in arms:
                continue
            if "none" in arms:
                comparisons.append(by_key(f"{label}, map", ARMS[arm], ("map", ARMS[arm]), arms["none"], arms[arm]))
            names = ("adaptive", ARMS[arm])
            comparisons.append(by_key(f"{label}, adaptive", ARMS[arm], names, adaptive, arms[arm]))
    return judge(comparisons, MARGIN if unit_scale(table) else None, table.higher_is_better) if comparisons else []


def found(table: Table) -> dict[Row, dict[str, dict[str, float]]]:
    """{adaptive row: {arm: {adaptive run's folder: mean score of what its map gave with its seed}}}."""
    rows = {run.folder.name: (row, run.seed) for row in table.rows for run in row.runs if not is_map(row)}
    scores: dict[Row, dict[str, dict[str, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for mapped in filter(is_map, table.rows):
        arm = mapped.settings.get("allocator.shuffle", "")
        for run in mapped.runs:
            row, seed = rows.get(origin := source(run), (None, None))
            if row is not None and arm in ARMS and run.seed == seed:
                scores[row][arm][origin].append(run.score[1])
    return {
        row: {arm: {origin: fmean(values) for origin, values in by.items()} for arm, by in arms.items()}
        for row, arms in scores.items()
    }


def _label(row: Row) -> str:
    return f"{row.method} {formats.ranks(row.initial_rank, row.final_rank)}"
