"""A task from the Hugging Face hub, or anything else that the datasets library loads by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adarank.errors import SettingError
from adarank.harness.complaints import near
from adarank.harness.tasks.base import Task
from adarank.harness.tasks.rows import Table, assemble, check_metric, check_sizes, pick

PROBE_S = 10.0  # how long the hub may take to say that it is there


def hub(
    name: str,
    config: str | None = None,
    revision: str | None = None,
    text: str = "text",
    pair: str | None = None,
    label: str = "label",
    train: str = "train",
    dev: str = "validation",
    test: str | None = "test",
    metric: str | None = None,
    limit: int | None = None,
    max_length: int = 128,
) -> Task:
    """A data set by its name on the hub, or by a local folder that `datasets.load_dataset` reads.

    config, revision: as there (data sets that are scripts are not loaded); train, dev, test: names of splits; a test
    split without labels (all -1) is left out. Classes keep the order the data set gives them. Raises SettingError where
    it cannot be had, which without a network takes no longer than the probe.
    """
    check_metric(metric)
    check_sizes(limit, max_length)
    found = download(f"task.name={name}", "a data set's name and a reachable hub, or task=files task.path=FOLDER", name, config, revision)
    splits = {"train": train, "dev": dev, "test": test}
    for role, split in splits.items():
        if split is not None and split not in found:
            leave = "; task.test=null does without" if role == "test" else ""
            raise SettingError(f"task.{role}={split}: {name} has no split {split}; {near(split, found)}{leave}")
    tables = {
        role: table(found[split], f"split {split} (task.name={name})", text, pair, label)
        for role, split in splits.items()
        if split is not None
    }
    return from_tables(f"{name}/{config}" if config else name, found[train], label, tables, metric=metric, limit=limit, max_length=max_length)
