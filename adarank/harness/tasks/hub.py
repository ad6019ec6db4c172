"""A task from the Hugging Face hub, or anything else that the datasets library loads by name."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from adarank.errors import SettingError
from adarank.harness.complaints import near
from adarank.harness.tasks.base import Task
from adarank.harness.tasks.rows import Table, assemble, check_metric, check_sizes, missing, pick

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
    what = f"task.name={name}"
    found = download(
        name, config, revision, what, "a data set's name and a reachable hub, or task=files task.path=FOLDER"
    )
    return from_splits(
        f"{name}/{config}" if config else name,
        found,
        what,
        columns=(text, pair, label),
        splits={"train": train, "dev": dev, "test": test},
        metric=metric,
        limit=limit,
        max_length=max_length,
    )


def download(name: str, config: str | None, revision: str | None, what: str, valid: str) -> Mapping[str, Any]:
    """{split: data set} of a name or a local folder. Raises SettingError about `what`, saying what would be `valid`.

    Without the hub it is the latest copy in the library's cache, whatever the revision; the library warns of that.
    """
    try:
        import datasets
    except ImportError:
        raise SettingError(
            f"{what} needs the library datasets, which is not installed; pip install 'adarank[hub]', or {valid}"
        ) from None
    offline = datasets.config.HF_HUB_OFFLINE
    silent = not (offline or Path(name).is_dir() or answers(name, revision))
    # datasets asks an unreachable hub six times over, 20 seconds and more, before it turns to its cache
    datasets.config.HF_HUB_OFFLINE = offline or silent
    try:
        return datasets.load_dataset(name, config, revision=revision)
    except Exception as error:  # the library raises its own, fsspec's, pyarrow's and the HTTP client's
        reason = "the hub does not answer" if silent else str(error).strip().partition("\n")[0].rstrip(".")
        tried = "a folder of that name, the Hugging Face hub and the cache of datasets"
        raise SettingError(f"{what} could not be loaded ({reason}); tried: {tried}; valid: {valid}") from error
    finally:
        datasets.config.HF_HUB_OFFLINE = offline


def answers(name: str, revision: str | None) -> bool:
    """Whether the hub replies when asked about the data set, be it that there is none."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        HfApi().dataset_info(name, revision=revision, timeout=PROBE_S)
    except (HfHubHTTPError, HFValidationError):
        return True
    except Exception:  # the HTTP client's own: which client it is depends on the version of huggingface_hub
        return False
    return True


def from_splits(
    title: str,
    found: Mapping[str, Any],
    what: str,
    *,
    columns: tuple[str, str | None, str],
    splits: Mapping[str, str | None],
    metric: str | Sequence[str] | None,
    limit: int | None,
    max_length: int,
) -> Task:
    """A task of loaded data sets. columns: text, pair, label; splits: {"train" | "dev" | "test": its name there}."""
    for role, split in splits.items():
        if split is not None and split not in found:
            leave = "; task.test=null does without" if role == "test" else ""
            raise SettingError(f"task.{role}={split}: {what} has no split {split}; {near(split, found)}{leave}")
    tables = {role: _table(found[s], f"split {s} ({what})", *columns) for role, s in splits.items() if s is not None}
    test = tables.get("test")
    if test is not None and all(missing(value) for value in test.label):
        test = None
    return assemble(title, tables["train"], tables["dev"], test, metric=metric, limit=limit, max_length=max_length)


def _table(dataset: Any, source: str, text: str, pair: str | None, label: str) -> Table:
    """Labels that the data set names become their names, and -1, its mark for none, None."""
    found = pick(source, {name: dataset[name] for name in dataset.column_names}, text, pair, label)
    names = getattr(dataset.features[found.names[2]], "names", None)
    if names is None:
        return found
    return replace(found, label=[None if i is None or i < 0 else names[i] for i in found.label], order=tuple(names))
