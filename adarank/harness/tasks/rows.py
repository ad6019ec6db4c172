"""From columns as read to a checked `Task`: what all loaders share."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adarank.errors import SettingError
from adarank.harness.complaints import near
from adarank.harness.tasks import labels, metrics
from adarank.harness.tasks.base import Split, Task

DEFAULT = {True: ("pearson_spearman",), False: ("accuracy",)}  # by whether it is a regression
SHORTEST = 8  # tokens: two sentences' special tokens take four


@dataclass(frozen=True)
class Table:
    """A split as read.

    source: where from, for messages; names: the columns that text, pair and label came from; order: the classes in
    index order where the source has one.
    """

    source: str
    text: list[Any]
    pair: list[Any] | None
    label: list[Any]
    names: tuple[str, str | None, str]
    order: tuple[str, ...] | None = None


def require_rows(source: str, columns: Mapping[str, Sequence[Any]]) -> None:
    if not any(len(values) for values in columns.values()):
        raise SettingError(f"{source} has no rows; valid: at least one row a split")


def pick(source: str, columns: Mapping[str, Sequence[Any]], text: str, pair: str | None, label: str) -> Table:
    """The columns that task.text, task.pair and task.label name. Raises SettingError where one is not there."""
    require_rows(source, columns)
    names = (str(text), None if pair is None else str(pair), str(label))
    for role, name in zip(("text", "pair", "label"), names, strict=True):
        if name is not None and name not in columns:
            hint = near(name, columns)
            everything = f"; its columns: {', '.join(columns)}" if hint.startswith("near") else ""
            raise SettingError(f"task.{role}={name}: {source} has no column {name}; {hint}{everything}")
    values = [None if name is None else list(columns[name][:]) for name in names]
    return Table(source, values[0] or [], values[1], values[2] or [], names)


def check_sizes(limit: int | None, max_length: int) -> None:
    """Refuse task.limit and task.max_length that keep nothing."""
    if limit is not None and limit < 1:
        raise SettingError(f"task.limit={limit} keeps no rows; valid: at least 1, or null for all")
    if max_length < SHORTEST:
        raise SettingError(f"task.max_length={max_length} is too short; valid: at least {SHORTEST} tokens")


def check_metric(name: str | None, regression: bool | None = None) -> None:
    """Refuse a task.metric that is unknown or, once the labels are read, does not fit them."""
    if name is None:
        return
    metrics.higher_is_better(name)
    if regression is not None and name not in metrics.fitting(regression):
        kind = "numbers with fractions" if regression else "classes (words or whole numbers)"
        other = "write classes as words or whole numbers" if regression else "write targets with a point (3.0)"
        valid = ", ".join(metrics.fitting(regression))
        raise SettingError(f"task.metric={name} does not fit labels that are {kind}; valid: {valid}; or {other}")


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
    """A `Task` of checked rows: labels to indices or targets, then `limit` rows a split, then the fingerprint.

    Labels that are whole numbers or words are classes (sorted, numbers by size; or in train's own order), numbers with
    fractions are targets of a regression. metric: one name, several (the first is reported), or None: accuracy, or
    pearson_spearman. Raises SettingError, naming file and row, for what cannot be used.
    """
    check_sizes(limit, max_length)
    tables = {"train": train, "dev": dev} | ({} if test is None else {"test": test})
    for table in tables.values():
        _check_values(table)
    typed = labels.typed({key: table.label for key, table in tables.items()}, words=train.order is not None)
    regression = isinstance(typed["train"][0], float)
    names = (metric,) if isinstance(metric, str) else tuple(metric or DEFAULT[regression])
    for each in names:
        check_metric(each, regression)
    classes: list[Any] = [] if regression else labels.classes(train.source, typed["train"], train.order)
    splits: dict[str, Split] = {}
    for key, table in tables.items():
        if regression:
            label = labels.targets(table.source, typed[key])
        else:
            label = labels.indices(table.source, typed[key], classes)
        rows = kept(label, limit)
        pair = None if table.pair is None else [table.pair[i] for i in rows]
        splits[key] = Split([table.text[i] for i in rows], pair, label[rows])
    return Task(
        name=name,
        train=splits["train"],
        dev=splits["dev"],
        test=splits.get("test"),
        labels=tuple(str(c) for c in classes),
        metrics=names,
        max_length=max_length,
        fingerprint=fingerprint(splits),
    )


def kept(label: np.ndarray, limit: int | None) -> np.ndarray:
    """Row numbers, in order, of at most `limit` rows: the first of each class in turn; of a regression the first."""
    if limit is None or limit >= len(label) or label.dtype == np.float32:
        return np.arange(len(label))[:limit]
    turn = np.empty(len(label), dtype=np.int64)
    for each in np.unique(label):
        rows = np.flatnonzero(label == each)
        turn[rows] = np.arange(len(rows))
    return np.sort(np.argsort(turn, kind="stable")[:limit])


def fingerprint(splits: Mapping[str, Split]) -> str:
    """SHA-256 (hex) of names, texts, pairs and labels of all splits, in order."""
    digest = hashlib.sha256()
    for name, split in splits.items():
        digest.update(json.dumps([name, split.text, split.pair, split.label.tolist()]).encode("ascii"))
    return digest.hexdigest()


def missing(value: Any) -> bool:
    """None, NaN, or a string of blanks."""
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and not value.strip())
    )


def _check_values(table: Table) -> None:
    require_rows(table.source, {"label": table.label})
    for name, values in zip(table.names, (table.text, table.pair, table.label), strict=True):
        gaps = [row for row, value in enumerate(values or [], 1) if missing(value)]
        if gaps:
            others = f" and {len(gaps) - 1} more" if len(gaps) > 1 else ""
            raise SettingError(
                f"{table.source}: {name} is missing in row {gaps[0]}{others}; valid: a value in every row"
            )
    for name, values in zip(table.names[:2], (table.text, table.pair), strict=True):
        for row, value in enumerate(values or [], 1):
            if not isinstance(value, str):
                raise SettingError(f"{table.source}: {name} is no text in row {row} ({value!r:.60}); valid: strings")
    for row, value in enumerate(table.label, 1):
        if not isinstance(value, str | int | float):
            raise SettingError(
                f"{table.source}: {table.names[2]} is no label in row {row} ({value!r:.60}); valid: a word or a number"
            )
