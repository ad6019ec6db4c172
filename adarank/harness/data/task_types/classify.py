"""Classification and regression of texts or pairs of texts: a head on the model, one label per row."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adarank.errors import SettingError
from adarank.harness.config.spec import TrainConfig
from adarank.harness.data import batches
from adarank.harness.data.batches import Encoded
from adarank.harness.data.metrics import labels as metrics
from adarank.harness.data.tasks.base import Task
from adarank.harness.device import at_least_fp32, autocast
from adarank.harness.run import parallel
from adarank.runs.predictions import Columns

AUTO = "AutoModelForSequenceClassification"
PROCESSOR = "AutoTokenizer"
FRESH_HEAD = True
ONE_PASS = None


def check(config: Any, model: str) -> None:
    """Accept any encoder, decoder or encoder-decoder for which Transformers has a classifier."""
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise SettingError(
            f"{model} must be a model that classifies texts for this task (got the architecture {config.model_type}); "
            "choose another model, or for images task=images or task=digits"
        )


def outputs(task: Task) -> int:
    return max(len(task.labels), 1)


def encode(task: Task, split: str, tokenizer: Any) -> Encoded:
    """Raises SettingError for a row that is too long for the model."""
    rows = getattr(task, split)
    encoded = batches.encode(rows, tokenizer, task.max_length, f"{task.fingerprint} {split}")
    batches.check_lengths(encoded.lengths, rows.text, split, "task.max_length", task.max_length, tokenizer)
    return encoded


def collate(rows: Encoded, numbers: np.ndarray, device: torch.device) -> dict[str, Tensor]:
    """Model inputs [batch, longest] and labels [batch]."""
    inputs, labels = batches.collate(rows, numbers, device)
    return {**inputs, "labels": labels}


def units(rows: Encoded, numbers: np.ndarray) -> int:
    return len(numbers)


def loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    return task_loss(model(**_inputs(batch)).logits, batch["labels"])


def task_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy for classes (logits [n, classes]), mean squared error for float targets (logits [n, 1])."""
    logits = at_least_fp32(logits)
    if labels.is_floating_point():
        return F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))
    return F.cross_entropy(logits, labels)


Collate = Callable[[Any, np.ndarray, torch.device], dict[str, Tensor]]


@torch.no_grad()
def evaluate(
    model: nn.Module,
    rows: Any,
    names: Sequence[str],
    config: TrainConfig,
    device: torch.device,
    collate: Collate = collate,
    *,
    per_row: Callable[[Columns], None] | None = None,
) -> dict[str, float]:
    """The task's metrics and the loss over a whole split, without pruned triplets (λ ⊙ mask).

    rows: with `label`, a tensor [rows], and `lengths`; collate: makes their batches; per_row: receives `columns`.
    """
    logits, order = _all_logits(model, rows, config, device, collate)
    if per_row is not None:
        per_row(columns(logits[np.argsort(order)], rows.label))
    labels = rows.label[torch.from_numpy(order)]
    values = metrics.compute(names, logits.numpy(), labels.numpy())
    return {**values, "loss": task_loss(logits, labels).item()}


def columns(logits: Tensor, labels: Tensor) -> Columns:
    """The columns to keep for every row, in the order of `labels` [rows].

    Classes: label and prediction, int64; score, float32, the probability of the predicted class. Regression: all
    float32, and the score is the prediction.
    """
    if labels.is_floating_point():
        targets = logits.squeeze(-1).numpy()
        return {"label": labels.float().numpy(), "prediction": targets, "score": targets}
    prediction = logits.numpy().argmax(1)
    score = logits.softmax(-1).numpy()[np.arange(len(labels)), prediction]
    return {"label": labels.numpy(), "prediction": prediction, "score": score}


def predict(
    model: nn.Module, rows: Encoded, classes: Sequence[str], config: TrainConfig, device: torch.device
) -> list[dict[str, Any]]:
    """One prediction per row, in the rows' order: the class and the probability of each class, or the regression
    target."""
    logits, order = _all_logits(model, rows, config, device, collate)
    logits = logits[np.argsort(order)]
    if not classes:
        return [{"row": row, "target": value} for row, value in enumerate(logits.squeeze(-1).tolist(), 1)]
    shares = logits.softmax(-1).tolist()
    return [
        {"row": row, "label": classes[best], "probabilities": dict(zip(classes, parts, strict=True))}
        for row, (best, parts) in enumerate(zip(logits.argmax(-1).tolist(), shares, strict=True), 1)
    ]


@torch.no_grad()
def _all_logits(
    model: nn.Module, rows: Any, config: TrainConfig, device: torch.device, collate: Collate
) -> tuple[Tensor, np.ndarray]:
    """(logits [rows, classes] on the CPU, the rows' numbers in their order), without pruned triplets."""
    model.eval()
    lengths = rows.lengths
    order = batches.evaluation_order(lengths, 2 * config.batch_size)

    def batch_logits(numbers: np.ndarray) -> Tensor:
        inputs = batches.without_full_mask(_inputs(collate(rows, numbers, device)), lengths[numbers])
        with autocast(config.precision, device):
            logits: Tensor = model(**inputs).logits
        return logits.float()

    logits = parallel.gather_batches(order, batch_logits).cpu()
    model.train()
    return logits, np.concatenate(order)


def _inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in batch.items() if name != "labels"}
