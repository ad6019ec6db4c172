"""Prefix ranks: the metric of one run when only the first r triplets of every module are kept."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adarank.adaptation import ranks as ranks_of
from adarank.adapters.lowrank import adapters_of
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
    """{"metric", "ranks", "dev", "test"}: the first metric of the run in `folder` at each of `ranks`, ascending, on
    both splits (test: None if the run did not measure it). The weights are those of its best checkpoint.

    Raises SettingError if the run has no triplets, or a rank is above that of its largest module.
    """
    run = open_run(folder)
    load_trained_weights(run)
    if not adapters_of(run.model):
        raise SettingError(f"--prefixes needs a low-rank method, and the run in {folder} has method={run.spec.method}")
    largest = max(ranks_of(run.model).values())
    if ranks[-1] > largest:
        raise SettingError(f"--prefixes must be at most {largest}, the run's largest rank (got {ranks[-1]})")
    task_type, name = TASK_TYPES[run.task.task_type], run.task.metrics[0]
    names = ["dev"] + ["test"] * (run.task.test is not None and run.spec.test)
    splits = {split: task_type.encode(run.task, split, run.built.processor) for split in names}
    found: dict[str, list[float]] = {split: [] for split in names}
    for rank in reversed(ranks):
        truncate(run.model, rank)
        for split, rows in splits.items():
            value = task_type.evaluate(run.model, rows, [name], run.spec.train, run.device)[name]
            found[split].insert(0, value)
    better = higher_is_better(name)
    return {
        "metric": name,
        "higher_is_better": better,
        "ranks": list(ranks),
        "dev": found["dev"],
        "test": found.get("test"),
    }
