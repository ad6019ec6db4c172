"""Prefix ranks: the metric of one run when only the first r triplets of every module are kept, or its r largest
singular values."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from adarank.adaptation import ranks as ranks_of
from adarank.adapters.lowrank import LowRank, adapters_of
from adarank.compression import compress
from adarank.errors import SettingError
from adarank.harness.data.metrics import higher_is_better
from adarank.harness.data.task_types import TASK_TYPES
from adarank.probe.reload import load_trained_weights, open_run
from adarank.truncation import truncate


def prefix_ranks(text: str) -> list[int]:
    """The ranks in "1,2,4,8", ascending. Raises SettingError for anything else."""
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) for word in words):
        raise SettingError(f"--prefixes must be whole numbers of at least 1, as in 1,2,4,8 (got {text})")
    return sorted({int(word) for word in words})


def measure(folder: Path, ranks: Sequence[int]) -> dict[str, Any]:
    """{"metric", "higher_is_better", "ranks", "dev", "test", "svd"}: the first metric of the run in `folder` at each of
    `ranks`, ascending, on both splits (test: None if the run did not measure it). The weights are those of its best
    checkpoint.

    "svd" has "dev" and "test" with every module's ΔW replaced by its best approximation at these ranks, to which a run
    can be cut even if its prefixes were not trained; None if ΔW is more than its triplets.

    Raises SettingError if the run has no triplets, or a rank is above that of its largest module.
    """
    run = open_run(folder)
    load_trained_weights(run)
    adapters = adapters_of(run.model)
    if not adapters:
        raise SettingError(f"--prefixes needs a low-rank method, and the run in {folder} has method={run.spec.method}")
    largest = max(ranks_of(run.model).values())
    if ranks[-1] > largest:
        raise SettingError(f"--prefixes must be at most {largest}, the run's largest rank (got {ranks[-1]})")
    task_type, name = TASK_TYPES[run.task.task_type], run.task.metrics[0]
    names = ["dev"] + ["test"] * (run.task.test is not None and run.spec.test)
    splits = {split: task_type.encode(run.task, split, run.built.processor) for split in names}

    def at_each(cut: Callable[[int], object]) -> dict[str, list[float] | None]:
        found: dict[str, list[float] | None] = {"dev": [], "test": None, **{split: [] for split in names}}
        for rank in reversed(ranks):
            cut(rank)
            for split, rows in splits.items():
                value = task_type.evaluate(run.model, rows, [name], run.spec.train, run.device)[name]
                found[split] = [value, *(found[split] or [])]
        return found

    original = {adapter: (adapter.mask.clone(), adapter.scale) for adapter in adapters.values()}
    prefixes, svd = at_each(lambda rank: truncate(run.model, rank)), None
    if all(adapter.parametrisation.is_plain and adapter.start_Q is None for adapter in original):
        for adapter, (mask, scale) in original.items():
            adapter.mask, adapter.scale = mask, scale
        compress(run.model, sum(adapter.rank for adapter in original))
        svd = at_each(lambda rank: _keep_first(original, rank))
    return {
        "metric": name,
        "higher_is_better": higher_is_better(name),
        "ranks": list(ranks),
        **prefixes,
        "svd": svd,
    }


def _keep_first(adapters: Iterable[LowRank], rank: int) -> None:
    """Prune all but the first triplets, as `truncate` does, at the scale of all triplets."""
    for adapter in adapters:
        adapter.mask &= adapter.mask.cumsum(0) <= rank
