"""Rows of rank maps. Every seed trains the map of its own adaptive run, so that no two of them share a configuration."""

from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from analysis.files import read_config
from analysis.load import Run
from analysis.rows import Row, make_row
from analysis.settings import visible

SHUFFLE_SEED = "allocator.seed"


def is_map(row: Row) -> bool:
    return row.settings.get("allocator") == "rank_map"


def source(run: Run) -> str:
    """The name of the folder of the run that a map came from; "" where its settings do not say."""
    return PurePath((read_config(run.folder) or {}).get("allocator.source", "")).name


def pooled(rows: Iterable[Row]) -> list[Row]:
    """The rows, those of maps that differ in their source alone made one. The shuffle's seed tells rows apart only where one
    training seed has several."""
    found, maps = [], defaultdict(list)
    for row in rows:
        if is_map(row):
            maps[_key(row, {SHUFFLE_SEED})].append(row)
        else:
            found.append(row)
    for group in maps.values():
        if (one := _one(group)) is not None:
            found.append(one)
            continue
        by_shuffle = defaultdict(list)
        for row in group:
            by_shuffle[_key(row, set())].append(row)
        for several in by_shuffle.values():
            found += several if (one := _one(several)) is None else [one]
    return found


def _key(row: Row, without: set[str]) -> Hashable:
    """What rows of one kind share. triplets: maps of several budgets may stand in one table."""
    settings: dict[str, Any] = {key: value for key, value in visible(row).items() if key not in without}
    return (row.method, row.targets, row.triplets, *sorted(settings.items()))


def _one(rows: list[Row]) -> Row | None:
    """The row of all their runs, with the settings they share; None where a seed would count twice."""
    if len(rows) == 1:
        return rows[0]
    runs = [run for row in rows for run in row.runs]
    if len({run.seed for run in runs}) < len(runs):
        return None
    shared = set.intersection(*(set(row.settings.items()) for row in rows))
    return replace(
        make_row(runs), settings={key: value for key, value in rows[0].settings.items() if (key, value) in shared}
    )
