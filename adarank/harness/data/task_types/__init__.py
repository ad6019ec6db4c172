"""Types of task: one module per type turns a task's rows into batches, a loss and metrics.

A task names its type (`Task.task_type`); models, the training loop and evaluation call that module. To add a type,
write a module with everything that `TaskType` lists, add it to TASK_TYPES, and let tasks name it. A metric for which
lower is better is added to `metrics.LOWER_IS_BETTER`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from adarank.harness.config.spec import TrainConfig
from adarank.harness.data.task_types import classify, extract, generate, images, seq2seq
from adarank.harness.data.tasks.base import Task
from adarank.runs.predictions import Columns


class TaskType(Protocol):
    """The interface of the modules in this folder.

    `rows` stands for the result of `encode`. Other code uses only len(rows), the number of training rows, and
    rows.lengths, their tokens (1 for an image), int64 [rows]. A batch holds the model's arguments, {input name: [batch,
    …]}, with targets under Transformers' own names, so that inits that use data can read `model(**batch).loss`. The
    first dimension of every tensor counts rows, so that a batch can be split among processes.
    """

    @property
    def AUTO(self) -> str:
        """The Auto class of Transformers that builds its models."""

    @property
    def PROCESSOR(self) -> str:
        """The Auto class of Transformers that builds its processor: "AutoTokenizer" or "AutoImageProcessor"."""

    @property
    def FRESH_HEAD(self) -> bool:
        """Whether the modules outside the base model are initialised at random and therefore trained by every
        method."""

    @property
    def ONE_PASS(self) -> str | None:
        """Which rows must share their forward pass whatever `train.microbatches` is, and why; None if none must."""

    def check(self, config: Any, model: str) -> None:
        """Raise SettingError if a model cannot do such tasks. config: Transformers'; model: its name in messages."""

    def outputs(self, task: Task) -> int:
        """The head's outputs per row (num_labels); 0 if the model decides."""

    def encode(self, task: Task, split: str, processor: Any, /) -> Any:
        """The encoded rows of the task's "train", "dev" or "test" split. Raises SettingError for unusable rows.

        processor: the model's tokeniser or image processor.
        """

    def collate(self, rows: Any, numbers: np.ndarray, device: torch.device) -> dict[str, Tensor]:
        """The batch of the training rows with these numbers."""

    def units(self, rows: Any, numbers: np.ndarray) -> int:
        """The number of units (rows or tokens) over which the loss of those rows is a mean."""

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """The mean loss of the batch over its units, a scalar in fp32."""

    def evaluate(
        self,
        model: nn.Module,
        rows: Any,
        names: Sequence[str],
        config: TrainConfig,
        device: torch.device,
        *,
        per_row: Callable[[Columns], None] | None = None,
    ) -> dict[str, float]:
        """{metric: value} for the named metrics and "loss", over all rows; NaN for those that cannot be computed here.

        per_row: called once with columns that describe every row, in the rows' order; see `adarank.runs.predictions`.
        Under torchrun every process gets the same values, which equal those of a single process.
        """


TASK_TYPES: dict[str, TaskType] = {
    "classify": classify, "extract": extract, "generate": generate, "images": images, "seq2seq": seq2seq,
}  # fmt: skip

__all__ = ["TASK_TYPES", "TaskType"]
