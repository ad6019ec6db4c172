"""Text to text by a causal language model: a prompt, then a response, whose tokens alone count in the loss.

A row is [start tokens] prompt response [end token], cut to the task's length; labels are −100 on all but the response and
its end. Every reference of a prompt is a row of its own; evaluation answers each prompt once and compares with all of its
references.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from adarank.errors import SettingError
from adarank.harness import cache, parallel
from adarank.harness.distributed import rank, world
from adarank.harness.kinds.decode import answers
from adarank.harness.plan import Plan, autocast
from adarank.harness.tasks import text_metrics
from adarank.harness.tasks.base import Prompts, Task
from adarank.harness.tasks.text_metrics import higher_is_better, not_computed

__all__ = [
    "AUTO", "FRESH_HEAD", "check", "collate", "encode", "evaluate", "higher_is_better", "loss", "not_computed",
    "outputs", "units",
]  # fmt: skip

AUTO = "AutoModelForCausalLM"
FRESH_HEAD = False
IGNORED = -100  # the label of a token that does not count


@dataclass(frozen=True)
class Encoded:
    """A split as tokens. input_ids, labels: one list a pair of prompt and reference; counted [pairs]: its response's
    tokens; prompts, references: what is answered when evaluated, [] where nothing is; pad, end: token ids."""

    input_ids: list[list[int]]
    labels: list[list[int]]
    counted: np.ndarray
    prompts: list[list[int]]
    references: list[list[str]]
    tokenizer: Any
    pad: int
    end: int
    max_new_tokens: int

    def __len__(self) -> int:
        return len(self.input_ids)


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


def encode(task: Task, split: str, tokenizer: Any) -> Encoded:
    """Raises SettingError for a prompt that fills the task's length."""
    rows: Prompts = getattr(task, split)
    before, end = specials(tokenizer)
    prompts = [before + ids for ids in tokenizer(rows.prompt, add_special_tokens=False)["input_ids"]]
    longest = max(range(len(prompts)), key=lambda i: len(prompts[i]))
    if len(prompts[longest]) >= task.max_length:
        raise SettingError(
            f"task.max_tokens={task.max_length}: prompt {longest + 1} of {split} takes {len(prompts[longest])} tokens and "
            f"leaves none for the response ({rows.prompt[longest][:40]!r}…); valid: more than {len(prompts[longest])}"
        )
    key = cache.key(tokenizer, rows=f"{task.fingerprint} {split}", max_length=task.max_length, kind=task.kind)
    tokens = cache.read(key)
    if tokens is None:
        tokens = _pairs(rows, prompts, end, task.max_length, tokenizer)
        cache.write(key, tokens)
    counted = np.array([len(row) - row.count(IGNORED) for row in tokens["labels"]])
    answered = split == "test" or (split == "dev" and task.metrics[0] != "loss")
    few = task.options["generate_rows"] if answered else 0
    most = max(map(len, tokens["input_ids"]))
    if answered:
        most = max(most, max(map(len, prompts[:few])) + task.options["max_new_tokens"])
    if most > tokenizer.model_max_length:
        raise SettingError(
            f"task.max_tokens={task.max_length}, task.max_new_tokens={task.options['max_new_tokens']}: {split} needs up to "
            f"{most} tokens, and the model reads at most {tokenizer.model_max_length}; valid: fewer, or another model"
        )
    made = (prompts[:few], rows.references[:few], tokenizer, tokenizer.pad_token_id, end)
    return Encoded(tokens["input_ids"], tokens["labels"], counted, *made, task.options["max_new_tokens"])


def _pairs(
    rows: Prompts, prompts: Sequence[list[int]], end: int, max_length: int, tokenizer: Any
) -> dict[str, list[list[int]]]:
    texts = [text for references in rows.references for text in references]
    owners = [i for i, references in enumerate(rows.references) for _ in references]
    responses = tokenizer(texts, add_special_tokens=False)["input_ids"]
    found: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for i, response in zip(owners, responses, strict=True):
        found["input_ids"].append([*prompts[i], *response, end][:max_length])
        found["labels"].append([*[IGNORED] * len(prompts[i]), *response, end][:max_length])
    return found


def specials(tokenizer: Any) -> tuple[list[int], int]:
    """The tokens that the tokeniser puts before a text, and the one that ends a response (its end token, or separator)."""
    whole, plain = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (True, False))
    start = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    if end is None:
        raise SettingError(
            f"the model's tokeniser ({type(tokenizer).__name__}) has no end token, so that a response could not end; "
            "valid: one with an eos_token"
        )
    return list(whole[:start]), int(end)


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
        logits[:, :-1].float().transpose(1, 2), batch["labels"][:, 1:], ignore_index=IGNORED, reduction="none"
    )


@torch.no_grad()
def evaluate(model: nn.Module, rows: Encoded, plan: Plan, device: torch.device) -> dict[str, float]:
    """loss: the mean over all tokens of all responses (its exp is the perplexity); the other metrics where prompts are
    answered. Pruned triplets do not count (λ ⊙ mask). Batches go to ranks as in `classify.evaluate`."""
    model.eval()
    longest_first = np.argsort([-len(ids) for ids in rows.input_ids], kind="stable")
    order = [longest_first[i : i + 2 * plan.batch_size] for i in range(0, len(rows), 2 * plan.batch_size)]
    sums: list[Tensor] = []
    for first in range(0, len(order), world()):
        batch = collate(rows, order[min(first + rank(), len(order) - 1)], device)
        with autocast(plan.precision, device):
            found = token_losses(model, batch).sum(1)
        sums += parallel.in_order(found, [len(chosen) for chosen in order[first : first + world()]])
    values = {"loss": torch.cat(sums).double().sum().item() / int(rows.counted.sum())}
    if rows.prompts:
        tokens = answers(model, rows.prompts, rows.end, rows.pad, rows.max_new_tokens, plan, device)
        texts = [rows.tokenizer.decode(ids, skip_special_tokens=True) for ids in tokens]
        values |= text_metrics.compute([m for m in plan.metrics if m != "loss"], texts, rows.references)
    model.train()
    return values
