"""What a module of this room has to have."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from adarank.harness.plan import Plan
from adarank.harness.tasks.base import Task


class Kind(Protocol):
    """A module that says how rows of one kind of task become batches, a loss and metrics.

    `rows` are whatever its `encode` returns; the others only ask for their number, len(rows), the number of training
    rows, and for their lengths in tokens, rows.lengths, int64 [rows]. A batch is what the model is called with: {input name: [batch, …]}, targets included under Transformers' own
    names, so that `model(**batch).loss` is there for inits that look at data; every tensor's first dimension counts
    rows, so that ranks can share it.
    """

    @property
    def AUTO(self) -> str:
        """The Auto class of Transformers that builds its models."""

    @property
    def FRESH_HEAD(self) -> bool:
        """Whether what lies outside the base model starts untrained, and so trains whatever the method."""

    def check(self, config: Any, model: str) -> None:
        """Raise SettingError for a model (its Transformers config, and what to call it) that cannot do such tasks."""

    def outputs(self, task: Task) -> int:
        """The numbers that the head gives (num_labels), 0 where the model decides."""

    def encode(self, task: Task, split: str, tokenizer: Any) -> Any:
        """The rows of the task's "train", "dev" or "test". Raises SettingError for rows that cannot be used."""

    def collate(self, rows: Any, chosen: np.ndarray, device: torch.device) -> dict[str, Tensor]:
        """The batch of the training rows with the numbers `chosen`."""

    def units(self, rows: Any, chosen: np.ndarray) -> int:
        """What the loss of those rows is a mean over: as many rows, or tokens."""

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """The mean loss of the batch over its units, a scalar in fp32."""

    def evaluate(self, model: nn.Module, rows: Any, plan: Plan, device: torch.device) -> dict[str, float]:
        """{metric: value} over all rows, "loss" among them; NaN for what cannot be computed here (`not_computed`).

        Under torchrun every rank gets the same values, those that one process would have.
        """

    def higher_is_better(self, metric: str) -> bool: ...

    def not_computed(self, metrics: Sequence[str]) -> dict[str, str]:
        """{metric: why} for those of the task's metrics that this installation cannot compute."""
