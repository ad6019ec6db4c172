"""What every task hands to the training loop."""

from dataclasses import dataclass

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
class Task:
    """A loaded task.

    labels: the class names in index order, empty for regression; metrics: metric names, the first is the one
    that is reported and that chooses the best checkpoint (on dev); max_length: tokens kept of a row;
    fingerprint: SHA-256 (hex) of the rows as loaded, so that a run's identity follows its data.
    """

    name: str
    train: Split
    dev: Split
    test: Split | None
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    max_length: int
    fingerprint: str
