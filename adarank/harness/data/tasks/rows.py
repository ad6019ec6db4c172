"""Turns columns of texts and labels into a checked `Task` of classification or regression."""

import hashlib
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from adarank.errors import SettingError
from adarank.harness.data.metrics import labels as metrics
from adarank.harness.data.tasks.base import Split, Task

DEFAULT_METRICS = {True: ("pearson_spearman",), False: ("accuracy",)}  # {whether it is a regression: metrics}
MIN_LENGTH = 8  # tokens; the special tokens of two sentences take four
SHOWN = 6  # number of columns that a message names
_INTEGER = re.compile(r"[+-]?\d+")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Table:
    """A split as read.

    source: its origin, for messages; label: None if the rows have none; names: the columns of text, pair and label;
    order: the classes in index order, if the source defines one.
    """

    source: str
    text: list[Any]
    pair: list[Any] | None
    label: list[Any] | None
    names: tuple[str, str | None, str | None]
    order: tuple[str, ...] | None = None


def require_rows(source: str, columns: Mapping[str, Sequence[Any]]) -> None:
    if not any(len(values) for values in columns.values()):
        raise SettingError(f"{source} has no rows; every split needs at least one")


def pick_columns(source: str, columns: Mapping[str, Sequence[Any]], wanted: Mapping[str, str]) -> dict[str, list[Any]]:
    """{setting: values} for `wanted`, {setting: column}.

    A column that no setting selects has its own name as setting. Raises SettingError if a column or all rows are
    missing.
    """
    require_rows(source, columns)
    for setting, name in wanted.items():
        if name not in columns:
            chosen_by = "" if setting == name else f"{setting}={name}: "
            raise SettingError(
                f"{chosen_by}{source} has no column {name}; its columns are {few_columns(columns, [name])}"
            )
    return {setting: list(columns[name][:]) for setting, name in wanted.items()}


def few_columns(columns: Collection[str], expected: Sequence[str]) -> str:
    """The columns for an error message: all, or the SHOWN most similar to `expected` and the number of others."""
    if len(columns) <= SHOWN:
        return ", ".join(columns) or "none"

    def likeness(column: str) -> float:
        return max(SequenceMatcher(None, column.lower(), name.lower()).ratio() for name in expected)

    nearest = sorted(columns, key=likeness, reverse=True)[:SHOWN]
    return f"{', '.join(nearest)} and {len(columns) - SHOWN} others"


def table(source: str, columns: Mapping[str, Sequence[Any]], text: str, pair: str | None, label: str | None) -> Table:
    """The columns that task.text, task.pair and task.label name. Raises SettingError as `pick_columns` does."""
    names = (str(text), None if pair is None else str(pair), None if label is None else str(label))
    settings = zip(("task.text", "task.pair", "task.label"), names, strict=True)
    picked = pick_columns(source, columns, {setting: name for setting, name in settings if name is not None})
    return Table(source, picked["task.text"], picked.get("task.pair"), picked.get("task.label"), names)


def check_sizes(limit: int | None, max_length: int = MIN_LENGTH) -> None:
    """Raise SettingError if task.limit or task.max_length would keep nothing."""
    if limit is not None and limit < 1:
        raise SettingError(f"task.limit must be at least 1, or null for all rows (got {limit})")
    if max_length < MIN_LENGTH:
        raise SettingError(f"task.max_length must be at least {MIN_LENGTH} tokens (got {max_length})")


def check_metric(name: str | None, regression: bool | None = None) -> None:
    """Raise SettingError if task.metric is unknown or, once the labels have been read, does not fit them."""
    if name is None:
        return
    metrics.require_known(name)
    if regression is not None and name not in metrics.fitting(regression):
        labels = "numbers with fractions" if regression else "classes (words)"
        remedy = "write classes as words or whole numbers" if regression else "write every target as a number"
        valid = ", ".join(metrics.fitting(regression))
        raise SettingError(f"task.metric must be one of {valid} for labels that are {labels} (got {name}); or {remedy}")


def assemble(
    name: str,
    train: Table,
    dev: Table,
    test: Table | None,
    *,
    limit: int | None,
    max_length: int,
    metric: str | Sequence[str] | None = None,
) -> Task:
    """A `Task` with checked rows: labels become indices or targets, then `limit` rows per split are kept and
    fingerprinted.

    train's labels determine the type: whole numbers and words are classes (sorted, numbers by size, or in train's own
    order); numbers are regression targets if any of them has a fraction or if the metric is one for regression. A test
    set without labels is only predicted. metric: one name, several (the first is reported), or None: accuracy, or
    pearson_spearman for regression. Raises SettingError, naming file and row, for unusable values.
    """
    check_sizes(limit, max_length)
    tables = {"train": train, "dev": dev} | ({} if test is None else {"test": test})
    for table in tables.values():
        _check_values(table)
    names = (metric,) if isinstance(metric, str) else tuple(metric or ())
    labels = typed_labels(
        {key: table.label for key, table in tables.items() if table.label is not None},
        words=train.order is not None,
        targets=bool(set(names) & set(metrics.fitting(regression=True))),
    )
    regression = isinstance(labels["train"][0], float)
    names = names or DEFAULT_METRICS[regression]
    for each in names:
        check_metric(each, regression)
    classes: list[Any] = [] if regression else class_order(train.source, labels["train"], train.order)
    splits: dict[str, Split] = {}
    for key, table in tables.items():
        if table.label is None:
            rows = Split(table.text, table.pair, np.full(len(table.text), -1))
            splits["unlabelled_test"] = rows.take(limited(rows.label, limit))
            continue
        if regression:
            label = regression_targets(table.source, labels[key])
        else:
            label = class_indices(table.source, labels[key], classes)
        splits[key] = Split(table.text, table.pair, label).take(limited(label, limit))
    parts: dict[str, Any] = {"test": None, **splits}
    about: dict[str, Any] = {"labels": tuple(map(str, classes)), "metrics": names, "max_length": max_length}
    return Task(name, **parts, **about, fingerprint=fingerprint(splits))


def _number(value: Any) -> int | float | None:
    """The number that a label is or denotes; None for a word (`nan` and `inf` are words)."""
    if isinstance(value, str):
        if _INTEGER.fullmatch(value):
            return int(value)
        return float(value) if _NUMBER.fullmatch(value) else None
    return None if isinstance(value, bool) else value


def typed_labels(
    splits: Mapping[str, Sequence[Any]], words: bool = False, targets: bool = False
) -> dict[str, list[Any]]:
    """The labels of all splits, with the type of train's: int if all of these are whole numbers in any notation (1,
    "1", 1.0), float if all are numbers, otherwise str. Labels of other splits that are not such numbers remain
    unchanged.

    words: treat all as str; targets: treat all numbers as float.
    """
    numbers = [_number(value) for value in splits["train"]]
    if words or any(number is None for number in numbers):
        return {split: [str(value) for value in values] for split, values in splits.items()}
    fractions = targets or not all(float(number).is_integer() for number in numbers if number is not None)

    def typed(value: Any) -> Any:
        number = _number(value)
        if number is None or not (fractions or float(number).is_integer()):
            return value
        return float(number) if fractions else int(number)

    return {split: [typed(value) for value in values] for split, values in splits.items()}


def class_order(source: str, values: Sequence[Any], order: Sequence[str] | None = None) -> list[Any]:
    """The classes in index order: sorted, or in the given order. Raises SettingError if there is only one."""
    seen = set(values)
    if len(seen) < 2:
        raise SettingError(f"{source}: every label is {values[0]!r}; there must be at least two classes")
    return sorted(seen) if order is None else [name for name in order if name in seen]


def class_indices(source: str, values: Sequence[Any], classes: Sequence[Any]) -> np.ndarray:
    """Class indices, int64 [rows]. Raises SettingError for a label that is not among the classes."""
    index = {value: i for i, value in enumerate(classes)}
    for row, value in enumerate(values, 1):
        if value not in index:
            names = ", ".join(map(str, classes[:10])) + (f", … ({len(classes)} in all)" if len(classes) > 10 else "")
            raise SettingError(
                f"{source}: the label {value!r} of row {row} does not occur in train, whose labels are {names}"
            )
    return np.array([index[value] for value in values], dtype=np.int64)


def regression_targets(source: str, values: Sequence[float]) -> np.ndarray:
    """Targets, float32 [rows]. Raises SettingError for a value that is not a number or too large for float32."""
    for row, value in enumerate(values, 1):
        if not isinstance(value, float):
            raise SettingError(f"{source}: the label {value!r} of row {row} must be a number, like those of train")
    with np.errstate(over="ignore"):
        label = np.array(values).astype(np.float32)
    if not np.isfinite(label).all():
        row = int(np.flatnonzero(~np.isfinite(label))[0])
        raise SettingError(f"{source}: the label {values[row]} of row {row + 1} is too large for float32")
    return label


def limited(label: np.ndarray, limit: int | None) -> np.ndarray:
    """The numbers, in order, of at most `limit` rows: the first rows of each class in turn, or for regression the first
    rows."""
    if limit is None or limit >= len(label) or label.dtype == np.float32:
        return np.arange(len(label))[:limit]
    turn = np.empty(len(label), dtype=np.int64)
    for each in np.unique(label):
        rows = np.flatnonzero(label == each)
        turn[rows] = np.arange(len(rows))
    return np.sort(np.argsort(turn, kind="stable")[:limit])


def fingerprint(splits: Mapping[str, Split]) -> str:
    """SHA-256 (hex) of the names, texts, pairs and labels of all splits, in order."""
    digest = hashlib.sha256()
    for name, split in splits.items():
        digest.update(json.dumps([name, split.text, split.pair, split.label.tolist()]).encode("ascii"))
    return digest.hexdigest()


def missing(value: Any) -> bool:
    """Whether a value is None, NaN or a blank string."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def require_whole(source: str, name: str, row: int, text: str) -> None:
    """Raise SettingError for a text with half of a surrogate pair, as in a text that was cut inside an emoji."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        raise SettingError(
            f"{source}: {name} in row {row} contains half of a character ({half}), which no tokeniser can read; "
            "correct or remove the row"
        ) from None


def _check_values(table: Table) -> None:
    require_rows(table.source, {"text": table.text})
    columns = list(zip(table.names, (table.text, table.pair or [], table.label or []), strict=True))
    for name, values in columns:
        gaps = [row for row, value in enumerate(values, 1) if missing(value)]
        if gaps:
            others = f" and {len(gaps) - 1} more" if len(gaps) > 1 else ""
            raise SettingError(f"{table.source}: {name} is missing in row {gaps[0]}{others}; every row needs a value")
    string, label = ("a string", str), ("a word or a number", str | int | float)
    for (name, values), (valid, types) in zip(columns, (string, string, label), strict=True):
        for row, value in enumerate(values, 1):
            if not isinstance(value, types):
                raise SettingError(f"{table.source}: {name} in row {row} must be {valid} (got {value!r:.60})")
            if isinstance(value, str):
                require_whole(table.source, str(name), row, value)
