"""ranks_from: trains with the final ranks of a finished run, or a permutation of them, as fixed ranks.

This separates the benefit of the final rank map from that of adapting it during training: retrain with the map
(ranks_shuffle=none) and with permutations of it as a control, random ones or the reversed one.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from adarank.errors import SettingError
from adarank.runs.files import SUMMARY, read_object
from adarank.runs.modules import place_of


class RankMap(NamedTuple):
    """The ranks of a finished run. rank: its setting, the mean final rank; initial: the mean rank at the start; final:
    {module name: final rank}, including rank 0."""

    rank: int
    initial: int
    final: dict[str, int]


def read_rank_map(source: str) -> RankMap:
    """The ranks in the summary of the run folder `source`. Raises SettingError if it holds no finished run with
    ranks."""
    summary, fault = read_object(Path(source).expanduser() / SUMMARY)
    if fault or not summary:
        raise SettingError(
            f"ranks_from must be the folder of a finished run ({source} holds no summary.json that can be read)"
        )
    status, rank = summary.get("status"), summary.get("rank")
    if status != "finished":
        raise SettingError(f"ranks_from must be the folder of a finished run ({source} holds one that {status})")
    if rank is None:
        raise SettingError(f"ranks_from must be the run of a low-rank method ({source} holds one without ranks)")
    if rank["budget"] is None:
        raise SettingError(f"ranks_from must be the run of a method with a budget ({source} holds one without)")
    return RankMap(rank["budget"], rank["initial"], rank["final"])


def fixed_ranks(rank_map: RankMap, limits: Mapping[str, int], shuffle: str = "none", seed: int = 0) -> dict[str, int]:
    """The map's {module name: rank}, or a permutation of its ranks drawn from `seed`.

    limits: {module name: largest possible rank} of the modules to adapt, which must be the map's modules. shuffle:
    "within_family" moves ranks only between modules of one kind (see `adarank.runs.modules.place_of`), "all" between
    all modules; all permutations whose ranks fit are equally likely. "reversed" gives the highest rank to the module
    that had the lowest, and so on, as far as ranks fit; modules of equal rank come in an order drawn from `seed`.
    Raises SettingError if a name or rank does not fit.
    """
    final = rank_map.final
    if differing := sorted(final.keys() ^ limits.keys()):
        where = "is not a target here" if differing[0] in final else "had no adapter there"
        raise SettingError(
            f"ranks_from must be a run with this model and these targets ({len(differing)} modules differ: "
            f"{differing[0]}, for one, {where})"
        )
    if too_large := [name for name, rank in final.items() if rank > limits[name]]:
        raise SettingError(
            f"ranks_from gives {too_large[0]} the rank {final[too_large[0]]}, but its matrix allows at most "
            f"{limits[too_large[0]]}"
        )
    ranks = {name: final[name] for name in limits}
    if shuffle == "none":
        return ranks
    draw = np.random.default_rng(seed)
    groups: dict[str, list[str]] = {}
    for name in ranks:
        groups.setdefault(place_of(name).kind if shuffle == "within_family" else "", []).append(name)
    if shuffle == "reversed":
        ties = dict(zip(ranks, draw.permutation(len(ranks)), strict=True))
        choose = lambda free: min(free, key=lambda name: (ranks[name], ties[name]))  # noqa: E731
    else:
        choose = lambda free: free[draw.integers(len(free))]  # noqa: E731
    shuffled: dict[str, int] = {}
    for names in groups.values():
        shuffled |= _permuted(names, ranks, limits, choose)
    return {name: shuffled[name] for name in limits}


def _permuted(
    names: list[str], ranks: Mapping[str, int], limits: Mapping[str, int], choose: Callable[[list[str]], str]
) -> dict[str, int]:
    """Assign the ranks in descending order, each to the module that `choose` takes from the free ones that it fits. A
    module that fits a rank fits every smaller one, so that a free module always exists and the number of choices does
    not depend on earlier ones."""
    permuted: dict[str, int] = {}
    for rank in sorted((ranks[name] for name in names), reverse=True):
        free = [name for name in names if name not in permuted and limits[name] >= rank]
        permuted[choose(free)] = rank
    return permuted
