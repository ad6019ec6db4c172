"""What every task hands to the training loop."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Split:
    """Rows of one split, in a fixed order.

    text: one string a row; pair: the second sentence of each row, or None for single-sentence tasks;
    label: int64 class indices [rows], or float32 targets [rows] for regression.
    """

    text: list[str]
    pair: list[str] | None
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.text)

    def take(self, rows: np.ndarray) -> "Split":
        """The rows of the given numbers, in that order."""
        pair = None if self.pair is None else [self.pair[i] for i in rows]
        return Split([self.text[i] for i in rows], pair, self.label[rows])


@dataclass(frozen=True)
class Prompts:
    """Rows of one split of a task that generates, in a fixed order.

    prompt: one text a row; references: the responses to each, one or more.
    """

    prompt: list[str]
    references: list[list[str]]

    def __len__(self) -> int:
        return len(self.prompt)

    def take(self, rows: np.ndarray) -> "Prompts":
        """The rows of the given numbers, in that order."""
        return Prompts([self.prompt[i] for i in rows], [self.references[i] for i in rows])


@dataclass(frozen=True)
class Task:
    """A loaded task.

    train, dev, test: the rows, as the task's kind takes them (classify: `Split`); labels: the class names in index
    order, empty where there are no classes; metrics: metric names, the first is the one that is reported and that chooses
    the best checkpoint (on dev); max_length: tokens kept of a row; fingerprint: SHA-256 (hex) of the rows as loaded, so
    that a run's identity follows its data; kind: one of `adarank.harness.kinds.KINDS`; options: what that kind asks for
    beside, plain values, part of the run's identity.
    """

    name: str
    train: Any
    dev: Any
    test: Any
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    max_length: int
    fingerprint: str
    kind: str = "classify"
    options: Mapping[str, Any] = field(default_factory=dict)
