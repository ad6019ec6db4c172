"""Rows and tasks, the types that task functions return to the training loop."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from adarank.errors import SettingError

HOLDOUT_SEED = 0  # the same for all runs: a run's own seed must not affect which rows are held out
SALT = "adarank 0"  # of `salted_order`, which a run's own seed does not influence either

Turn = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}


class Rows:
    """A dataclass of columns, which are lists or arrays of the same length, or None."""

    def __len__(self) -> int:
        return len(next(iter(vars(self).values())))

    def take(self, rows: np.ndarray | Sequence[int]) -> Self:
        """The rows with these numbers, in that order."""

        def pick(column: Any) -> Any:
            return column[rows] if isinstance(column, np.ndarray) else column and [column[i] for i in rows]

        return type(self)(*map(pick, vars(self).values()))


@dataclass(frozen=True)
class Split(Rows):
    """Texts with labels, the rows of one split in a fixed order.

    text: one string per row; pair: the second sentence of each row, or None for tasks with one sentence; label: int64
    class indices [rows], or float32 targets [rows] for regression; -1 in rows without labels.
    """

    text: list[str]
    pair: list[str] | None
    label: np.ndarray


@dataclass(frozen=True)
class Images(Rows):
    """Images with classes, the rows of one split in a fixed order.

    image: the file of each row, or its content; label: int64 class indices [rows].
    """

    image: list[Path | bytes]
    label: np.ndarray


@dataclass(frozen=True)
class Prompts(Rows):
    """Prompts with responses, the rows of one split of a task that generates text, in a fixed order.

    prompt: one text per row; references: one or more responses to each; turns: the same prompts as conversations, each
    a list of {"role", "content"}, for the chat template of a tokenizer, or None; part: the part of the data that each
    row comes from, or None.
    """

    prompt: list[str]
    references: list[list[str]]
    turns: list[list[Turn]] | None = field(default=None, compare=False)
    part: list[str] | None = None


@dataclass(frozen=True)
class Task:
    """A loaded task.

    train, dev, test: the rows, in the form that the task's type takes (classify: `Split`, images: `Images`); test may
    be None; unlabelled_test: test rows without labels, a `Split` of a classify task, for which a run writes predictions
    at its end; labels: the class names in index order, empty if there are no classes; metrics: the first is reported
    and selects the best checkpoint (on dev); max_length: tokens kept per row, 0 if rows have no tokens; fingerprint:
    SHA-256 (hex) of the rows, part of the run's identity; task_type: a key of `task_types.TASK_TYPES`; options: further
    plain values that the type needs, part of the run's identity.
    """

    name: str
    train: Any
    dev: Any
    test: Any
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    max_length: int
    fingerprint: str
    task_type: str = "classify"
    options: Mapping[str, Any] = field(default_factory=dict)
    unlabelled_test: Any = None


def hold_out(task: Task, size: float | None) -> Task:
    """`task` with `size` of its training rows, the same in every run, as dev, so that the reported rows select nothing.

    size: a number of rows, or a fraction between 0 and 1; None leaves the task unchanged. The reported rows, which are
    the labelled test set or else the task's own dev set, become test: they are measured at the end and select neither a
    checkpoint nor a learning rate. Raises SettingError if train or dev would be empty.
    """
    if size is None:
        return task
    rows = len(task.train)
    count = round(size * rows) if isinstance(size, float) and 0 < size < 1 else size
    if not isinstance(count, int) or not 0 < count < rows:
        raise SettingError(
            f"holdout must be from 1 to {rows - 1} of the {rows} training rows, or a fraction between 0 and 1 (got "
            f"{size})"
        )
    order = np.random.default_rng(HOLDOUT_SEED).permutation(rows)
    return replace(
        task,
        train=task.train.take(np.sort(order[count:])),
        dev=task.train.take(np.sort(order[:count])),
        test=task.test or task.dev,
        fingerprint=hashlib.sha256(f"{task.fingerprint} holdout {count}".encode()).hexdigest(),
    )


def salted_order(texts: Sequence[str]) -> list[int]:
    """Row numbers in the order of the salted SHA-256 of their texts, which is shuffled but the same everywhere."""
    digests = [hashlib.sha256(f"{SALT}:{text}".encode()).digest() for text in texts]
    return sorted(range(len(texts)), key=lambda row: digests[row])
