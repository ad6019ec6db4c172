"""A task from the Hugging Face hub, or anything else that the datasets library loads by name."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from adarank.errors import SettingError
from adarank.harness.data.tasks.base import Task
from adarank.harness.data.tasks.readers import Columns
from adarank.harness.data.tasks.rows import Table, assemble, check_metric, check_sizes, missing, table

TIMEOUT_S = 10.0  # seconds within which the hub must answer


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
    """A data set by its name on the hub, or a local folder that `datasets.load_dataset` reads.

    config, revision: arguments of `load_dataset` (data sets that are scripts are not loaded); text, pair, label: names
    of columns; train, dev, test: names of splits; a test split without labels (all -1) is omitted. Classes keep the
    data set's order. Raises SettingError if it cannot be loaded; without a network that takes at most TIMEOUT_S.
    """
    check_metric(metric)
    check_sizes(limit, max_length)
    what = f"task.name={name}"
    use = "a data set's name while the hub can be reached, or task=files task.path=FOLDER"
    data = open_splits(name, config, revision, {"train": train, "dev": dev, "test": test}, what, use)
    title = f"{name}/{config}" if config else name
    return from_splits(title, data, (text, pair, label), metric=metric, limit=limit, max_length=max_length)


def download(name: str, config: str | None, revision: str | None, what: str, use: str) -> Mapping[str, Any]:
    """{split: data set} of a name or a local folder.

    what: the setting, for messages; use: the alternative that they recommend. If the hub cannot be reached, this is the
    latest copy in the library's cache, whatever the revision; the library warns about that. Raises SettingError.
    """
    try:
        import datasets
    except ImportError:
        raise SettingError(
            f"{what} needs the library datasets, which is not installed; pip install 'adarank[hub]', or use {use}"
        ) from None
    offline = datasets.config.HF_HUB_OFFLINE
    silent = not (offline or Path(name).is_dir() or reachable(name, revision))
    # datasets retries an unreachable hub for at least 20 seconds before it uses its cache
    datasets.config.HF_HUB_OFFLINE = offline or silent
    try:
        return datasets.load_dataset(name, config, revision=revision)
    except Exception as error:  # the library raises its own exceptions, fsspec's, pyarrow's and the HTTP client's
        reason = "the hub does not answer" if silent else str(error).strip().partition("\n")[0].rstrip(".")
        tried = "a folder of that name, the Hugging Face hub and the cache of datasets"
        raise SettingError(f"{what} could not be loaded ({reason}) from {tried}; use {use}") from error
    finally:
        datasets.config.HF_HUB_OFFLINE = offline


def open_splits(
    name: str, config: str | None, revision: str | None, splits: Mapping[str, str | None], what: str, use: str
) -> dict[str, tuple[str, Any]]:
    """{role: (the source for messages, the data set's split)}; the other arguments are those of `download`.

    splits: {"train" | "dev" | "test": the split's name in the data set, or None}. Raises SettingError for a missing
    split.
    """
    data = download(name, config, revision, what, use)
    for role, split in splits.items():
        if split is not None and split not in data:
            leave_out = "; task.test=null omits the test split" if role == "test" else ""
            names = ", ".join(map(str, data))
            raise SettingError(f"task.{role}={split}: {what} has no split {split}; its splits are {names}{leave_out}")
    return {role: (f"split {s} ({what})", data[s]) for role, s in splits.items() if s is not None}


def read_hub(
    repository: tuple[str, str | None, str], splits: Mapping[str, str | None], task: str, files: str
) -> dict[str, tuple[str, Any]]:
    """`open_splits` for a task without task.path. repository: name, config and revision; files: those of a folder."""
    what = f"task={task} without task.path: {repository[0]}"
    return open_splits(*repository, splits, what, f"task.path=FOLDER with {files}")


def reachable(name: str, revision: str | None) -> bool:
    """Whether the hub answers a request about the data set, even if it says that there is no such data set."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        HfApi().dataset_info(name, revision=revision, timeout=TIMEOUT_S)
    except (HfHubHTTPError, HFValidationError):
        return True
    except Exception:  # the HTTP client's own exceptions, and the client depends on the version of huggingface_hub
        return False
    return True


def columns(dataset: Any) -> Columns:
    """{column: values} of a loaded split."""
    return {name: dataset[name] for name in dataset.column_names}


def from_splits(
    title: str, data: Mapping[str, tuple[str, Any]], columns: tuple[str, str | None, str], **options: Any
) -> Task:
    """A task from loaded data sets. data: see `open_splits`; columns: text, pair, label; options: those of
    `rows.assemble`."""
    tables = {role: _table(rows, source, *columns) for role, (source, rows) in data.items()}
    test = tables.get("test")
    if test is not None and all(missing(value) for value in test.label or ()):
        test = None
    return assemble(title, tables["train"], tables["dev"], test, **options)


def _table(dataset: Any, source: str, text: str, pair: str | None, label: str) -> Table:
    """The rows of a split; class numbers become class names, and -1, which marks a missing label, becomes None."""
    rows = table(source, columns(dataset), text, pair, label)
    names = getattr(dataset.features[rows.names[2]], "names", None)
    if names is None:
        return rows
    return replace(rows, label=[None if i is None or i < 0 else names[i] for i in rows.label or ()], order=tuple(names))
