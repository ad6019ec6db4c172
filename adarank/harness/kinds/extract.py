"""Extractive question answering: a start and an end score for every token, the answer is the best span of all windows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adarank.errors import SettingError
from adarank.harness import data, parallel
from adarank.harness.kinds.windows import Windows, answers, windows
from adarank.harness.plan import Plan, at_least_fp32, autocast
from adarank.harness.tasks.answers import against, exact_match, f1, with_best_threshold
from adarank.harness.tasks.base import Task

AUTO = "AutoModelForQuestionAnswering"
FRESH_HEAD = True
NOWHERE = -1e4  # the score of a padded token


def check(config: Any, model: str) -> None:
    from transformers import MODEL_FOR_QUESTION_ANSWERING_MAPPING

    if type(config) not in MODEL_FOR_QUESTION_ANSWERING_MAPPING:
        raise SettingError(
            f"{model}: a {config.model_type} model does not answer with spans of a text; valid: an encoder, say model=hub "
            "model.name=roberta-base"
        )


def outputs(task: Task) -> int:
    return 2  # start and end


def encode(task: Task, split: str, tokenizer: Any) -> Windows:
    return windows(getattr(task, split), tokenizer, task.max_length, **task.options)


def collate(rows: Windows, chosen: np.ndarray, device: torch.device) -> dict[str, Tensor]:
    """Model inputs [batch, longest], start_positions and end_positions [batch]."""
    inputs, spans = data.collate(rows.encoded, chosen, device)
    return {**inputs, "start_positions": spans[:, 0], "end_positions": spans[:, 1]}


def units(rows: Windows, chosen: np.ndarray) -> int:
    return len(chosen)


def loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    inputs = {name: tensor for name, tensor in batch.items() if not name.endswith("_positions")}
    found = model(**inputs)
    return span_loss(found.start_logits, found.end_logits, batch["start_positions"], batch["end_positions"])


def span_loss(start: Tensor, end: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """The mean of both cross-entropies over the tokens. start, end [n, tokens]; first, last [n]."""
    return (F.cross_entropy(at_least_fp32(start), first) + F.cross_entropy(at_least_fp32(end), last)) / 2


@torch.no_grad()
def evaluate(model: nn.Module, rows: Windows, plan: Plan, device: torch.device) -> dict[str, float]:
    """SQuAD's measures over all questions, and the loss over all windows. Pruned triplets do not count (λ ⊙ mask)."""
    model.eval()
    order = data.evaluation_order(rows.lengths, 2 * plan.batch_size)
    width = len(rows.encoded.tokens["input_ids"][order[0][0]])  # the longest come first

    def scores(chosen: np.ndarray) -> Tensor:
        """[batch, 2, tokens]"""
        inputs, _ = data.collate(rows.encoded, chosen, device)
        with autocast(plan.precision, device):
            out = model(**inputs)
        found = torch.stack([out.start_logits, out.end_logits], dim=1).float()
        found = found.masked_fill(inputs["attention_mask"][:, None] == 0, NOWHERE)
        return F.pad(found, (0, width - found.shape[-1]), value=NOWHERE)

    found = parallel.over(order, scores).cpu()
    model.train()
    start, end = found[np.argsort(np.concatenate(order))].unbind(1)
    spans = rows.encoded.label
    values = measures(rows, start.numpy(), end.numpy(), plan.metrics)
    return {**values, "loss": span_loss(start, end, spans[:, 0], spans[:, 1]).item()}


def measures(rows: Windows, start: np.ndarray, end: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """{name: value} of "f1" and "exact_match", and of "best_…" at the threshold that is best on these rows. NaN where a
    score is. start, end [windows, tokens]."""
    if not (np.isfinite(start).all() and np.isfinite(end).all()):
        return dict.fromkeys(names, float("nan"))
    spans, doubt = answers(rows, start, end)
    given = [("" if rows.none_allowed and d > 0 else text) for text, d in zip(spans, doubt, strict=True)]
    wanted = rows.questions.answers
    values = {}
    for name in names:
        measure = {"f1": f1, "exact_match": exact_match}[name.removeprefix("best_")]
        if name.startswith("best_"):
            values[name] = with_best_threshold(
                against(measure, spans, wanted), [bool(w) for w in wanted], doubt.tolist()
            )
        else:
            values[name] = float(np.mean(against(measure, given, wanted)))
    return values


def higher_is_better(metric: str) -> bool:
    return True


def not_computed(metrics: Sequence[str]) -> dict[str, str]:
    return {}
