"""Text to text by a causal language model: a prompt, then a response, whose tokens alone count in the loss.

Every reference of a prompt is a row of its own (`kinds/pairs.py`); evaluation answers each prompt once and compares with all
of its references.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from adarank.errors import SettingError
from adarank.harness import parallel
from adarank.harness.data import evaluation_order
from adarank.harness.kinds.decode import answers
from adarank.harness.kinds.pairs import IGNORED, Encoded, encode
from adarank.harness.plan import Plan, at_least_fp32, autocast
from adarank.harness.tasks import text_metrics
from adarank.harness.tasks.base import Task
from adarank.harness.tasks.text_metrics import higher_is_better, not_computed

__all__ = [
    "AUTO", "FRESH_HEAD", "check", "collate", "encode", "evaluate", "higher_is_better", "loss", "not_computed",
    "outputs", "units",
]  # fmt: skip

AUTO = "AutoModelForCausalLM"
FRESH_HEAD = False


def check(config: Any, model: str) -> None:
    from transformers.models.auto import modeling_auto as auto

    family = config.model_type
    both_ways = family in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    if family not in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or both_ways or config.is_encoder_decoder:
        raise SettingError(
            f"{model} (architecture {family}) is no causal language model, and this task generates text; valid: a decoder, "
            "model=smollm2_135m or model=tiny_llama, say, or a task with labels"
        )


def outputs(task: Task) -> int:
    return 0


def collate(rows: Encoded, chosen: np.ndarray, device: torch.device) -> dict[str, Tensor]:
    """input_ids, attention_mask and labels, each [batch, longest], padded on the right."""
    ids, labels = ([torch.tensor(lists[i]) for i in chosen] for lists in (rows.input_ids, rows.labels))
    batch = {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=rows.pad),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
    }
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def units(rows: Encoded, chosen: np.ndarray) -> int:
    return int(rows.counted[chosen].sum())


def loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The mean cross-entropy of a response's token."""
    return token_losses(model, batch).sum() / (batch["labels"] != IGNORED).sum()


def token_losses(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """[batch, longest − 1]: the cross-entropy of every token but the first, 0 where it does not count."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    return F.cross_entropy(
        at_least_fp32(logits[:, :-1]).transpose(1, 2), batch["labels"][:, 1:], ignore_index=IGNORED, reduction="none"
    )


@torch.no_grad()
def evaluate(model: nn.Module, rows: Encoded, plan: Plan, device: torch.device) -> dict[str, float]:
    """loss: the mean over all tokens of all responses (its exp is the perplexity); the other metrics where prompts are
    answered. Pruned triplets do not count (λ ⊙ mask)."""
    model.eval()

    def losses(chosen: np.ndarray) -> Tensor:
        with autocast(plan.precision, device):
            return token_losses(model, collate(rows, chosen, device)).sum(1)

    order = evaluation_order(rows.lengths, 2 * plan.batch_size)
    values = {"loss": parallel.over(order, losses).double().sum().item() / int(rows.counted.sum())}
    if rows.prompts:
        tokens = answers(model, rows.prompts, rows.end, rows.pad, rows.max_new_tokens, plan, device)
        texts = [rows.tokenizer.decode(ids, skip_special_tokens=True) for ids in tokens]
        values |= text_metrics.compute([m for m in plan.metrics if m != "loss"], texts, rows.references)
    model.train()
    return values
