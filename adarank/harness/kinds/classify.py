"""Classification and regression of texts or pairs: a head on the model, one label a row."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adarank.harness import data, parallel
from adarank.harness.data import Encoded
from adarank.harness.plan import Plan, at_least_fp32, autocast
from adarank.harness.tasks import metrics
from adarank.harness.tasks.base import Task
from adarank.harness.tasks.metrics import higher_is_better

__all__ = [
    "AUTO", "FRESH_HEAD", "check", "collate", "encode", "evaluate", "higher_is_better", "loss", "not_computed",
    "outputs", "task_loss", "units",
]  # fmt: skip

AUTO = "AutoModelForSequenceClassification"
FRESH_HEAD = True


def check(config: Any, model: str) -> None:
    """Any encoder, decoder or both of which Transformers makes a classifier."""


def outputs(task: Task) -> int:
    return max(len(task.labels), 1)


def encode(task: Task, split: str, tokenizer: Any) -> Encoded:
    return data.encode(getattr(task, split), tokenizer, task.max_length, f"{task.fingerprint} {split}")


def collate(rows: Encoded, chosen: np.ndarray, device: torch.device) -> dict[str, Tensor]:
    """Model inputs [batch, longest] and labels [batch]."""
    inputs, labels = data.collate(rows, chosen, device)
    return {**inputs, "labels": labels}


def units(rows: Encoded, chosen: np.ndarray) -> int:
    return len(chosen)


def loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    return task_loss(model(**inputs).logits, batch["labels"])


def task_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy for classes (logits [n, classes]), mean squared error for float targets (logits [n, 1])."""
    logits = at_least_fp32(logits)
    if labels.is_floating_point():
        return F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))
    return F.cross_entropy(logits, labels)


@torch.no_grad()
def evaluate(model: nn.Module, rows: Encoded, plan: Plan, device: torch.device) -> dict[str, float]:
    """The task's metrics and the loss over a whole split. Pruned triplets do not count (λ ⊙ mask)."""
    model.eval()
    order = data.evaluation_order(rows.lengths, 2 * plan.batch_size)

    def logits(chosen: np.ndarray) -> Tensor:
        inputs, _ = data.collate(rows, chosen, device)
        with autocast(plan.precision, device):
            found: Tensor = model(**inputs).logits
        return found.float()

    ordered = parallel.over(order, logits).cpu()
    model.train()
    labels = rows.label[torch.from_numpy(np.concatenate(order))]
    values = metrics.compute(plan.metrics, ordered.numpy(), labels.numpy())
    return {**values, "loss": task_loss(ordered, labels).item()}


def not_computed(metrics: Sequence[str]) -> dict[str, str]:
    return {}
