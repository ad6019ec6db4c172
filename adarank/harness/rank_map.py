"""allocator=map: the rank map of a finished run, or a permutation of it, as the ranks of a new one from its first step.

Is it the map that helped, or how training came to it? Retrain the map (shuffle=none) and permutations of it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from adarank.allocators.by_family import family
from adarank.errors import SettingError


class Found(NamedTuple):
    """What a finished run says of its ranks. rank: the mean rank it was asked for; initial: the mean rank it started
    with; final: {module name: rank at the end}, 0 included."""

    rank: int
    initial: int
    final: dict[str, int]


def read(source: str) -> Found:
    """The ranks in the summary of the run folder `source`. Raises SettingError where there is no finished run in it."""
    path, valid = Path(source).expanduser() / "summary.json", "valid: the folder of a finished run"
    try:
        summary: Any = json.loads(path.read_text(encoding="utf-8"))
        status, rank = summary["status"], summary["rank"]
    except OSError:
        raise SettingError(f"allocator.source={source} holds no summary.json; {valid}") from None
    except (ValueError, KeyError, TypeError):
        raise SettingError(f"allocator.source={source}: its summary.json is damaged; {valid}") from None
    if status != "finished":
        raise SettingError(f"allocator.source={source} is a run that {status}; {valid}")
    if rank is None:
        raise SettingError(f"allocator.source={source} is a run without ranks; {valid} of a low-rank method")
    if rank["budget"] is None:
        raise SettingError(f"allocator.source={source} is a run without a budget; {valid} that keeps one")
    return Found(rank["budget"], rank["initial"], rank["final"])


def terms(source: str, asked: int | None) -> dict[str, int]:
    """rank and init_rank as the source had them. asked: a rank that was typed, which must be the source's."""
    found = read(source)
    if asked not in (None, found.rank):
        raise SettingError(
            f"rank={asked} does not go with allocator.source={source}, a run of rank={found.rank}; leave it out"
        )
    return {"rank": found.rank, "init_rank": found.initial}


def rank_map(
    source: str,
    limits: Mapping[str, int],
    shuffle: Literal["none", "within_family", "all"] = "none",
    seed: int = 0,
) -> dict[str, int]:
    """{module name: rank} of the run folder `source`; shuffled, the same ranks in other places, drawn from `seed`.

    limits: {module name: the largest rank that fits it} of the modules to adapt, which must be the source's. shuffle:
    "within_family" moves ranks only between modules of one family (see `adarank.allocators.by_family`). Every
    permutation whose ranks fit is equally likely. Raises SettingError where a name or rank does not fit.
    """
    final = read(source).final
    if differing := sorted(final.keys() ^ limits.keys()):
        where = "which are not targets here" if differing[0] in final else "which it did not adapt"
        raise SettingError(
            f"allocator.source={source} does not go with these targets: it differs in {len(differing)} modules, "
            f"{differing[0]} for one, {where}; valid: its own model and targets"
        )
    if too_large := [name for name, rank in final.items() if rank > limits[name]]:
        raise SettingError(
            f"allocator.source={source} gives {too_large[0]} the rank {final[too_large[0]]}; "
            f"valid for its matrix: at most {limits[too_large[0]]}"
        )
    ranks = {name: final[name] for name in limits}
    if shuffle == "none":
        return ranks
    draw = np.random.default_rng(seed)
    groups: dict[str, list[str]] = {}
    for name in ranks:
        groups.setdefault(family(name) if shuffle == "within_family" else "", []).append(name)
    found: dict[str, int] = {}
    for names in groups.values():
        found |= _permuted(names, ranks, limits, draw)
    return {name: found[name] for name in limits}


def _permuted(
    names: list[str], ranks: Mapping[str, int], limits: Mapping[str, int], draw: np.random.Generator
) -> dict[str, int]:
    """The largest rank first, each to a module drawn from the free ones that it fits: as what a rank fits a smaller one
    fits too, there always is one, and how many there are does not depend on the draws before."""
    found: dict[str, int] = {}
    for rank in sorted((ranks[name] for name in names), reverse=True):
        free = [name for name in names if name not in found and limits[name] >= rank]
        found[free[draw.integers(len(free))]] = rank
    return found
