"""Text to text by an encoder and a decoder: the whole text in, its reference out.

Labels are the reference's tokens with the model's own end token, −100 where padded; evaluation decodes with beams under the
model's own generation settings, as the published summarisation scripts do, and compares with the reference.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from adarank.errors import SettingError
from adarank.harness import cache, parallel
from adarank.harness.data import evaluation_order, lengths
from adarank.harness.distributed import world
from adarank.harness.kinds.pairs import IGNORED
from adarank.harness.plan import Plan, at_least_fp32, autocast
from adarank.harness.tasks import text_metrics
from adarank.harness.tasks.base import Prompts, Task
from adarank.harness.tasks.text_metrics import higher_is_better, not_computed

__all__ = [
    "AUTO", "FRESH_HEAD", "check", "collate", "encode", "evaluate", "higher_is_better", "loss", "not_computed",
    "outputs", "units",
]  # fmt: skip

AUTO = "AutoModelForSeq2SeqLM"
FRESH_HEAD = False


@dataclass(frozen=True)
class Encoded:
    """A split as tokens. source, labels: one list a pair of text and reference; counted [pairs]: its labels; answered: how
    many texts are summarised when evaluated; beams, max_new_tokens: of those."""

    source: list[list[int]]
    labels: list[list[int]]
    counted: np.ndarray
    references: list[list[str]]
    answered: int
    tokenizer: Any
    beams: int
    max_new_tokens: int

    def __len__(self) -> int:
        return len(self.source)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text, int64 [pairs]."""
        return lengths(self.source)


def check(config: Any, model: str) -> None:
    if not config.is_encoder_decoder:
        raise SettingError(
            f"{model} (architecture {config.model_type}) has no encoder and decoder, which this task needs; valid: BART or T5, "
            "say model=hub model.name=facebook/bart-large"
        )


def outputs(task: Task) -> int:
    return 0


def encode(task: Task, split: str, tokenizer: Any) -> Encoded:
    rows: Prompts = getattr(task, split)
    longest = task.options["max_new_tokens"]
    labels = _tokens("text_target", [own[0] for own in rows.references], longest, task, split, tokenizer)
    is_answered = split == "test" or (split == "dev" and task.metrics[0] != "loss")
    return Encoded(
        source=_tokens("text", rows.prompt, task.max_length, task, split, tokenizer),
        labels=labels,
        counted=np.array([len(row) for row in labels]),
        references=rows.references,
        answered=min(task.options["generate_rows"] or len(rows), len(rows)) if is_answered else 0,
        tokenizer=tokenizer,
        beams=task.options["beams"],
        max_new_tokens=longest,
    )


def _tokens(side: str, texts: list[str], longest: int, task: Task, split: str, tokenizer: Any) -> list[list[int]]:
    """One list of at most `longest` ids a text; side: "text" or "text_target", as tokenisers call them."""
    key = cache.key(tokenizer, rows=f"{task.fingerprint} {split}", kind=task.kind, side=side, max_length=longest)
    held = cache.read(key)
    if held is None:
        held = {"input_ids": tokenizer(**{side: texts}, truncation=True, max_length=longest)["input_ids"]}
        cache.write(key, held)
    return held["input_ids"]


def collate(rows: Encoded, chosen: np.ndarray, device: torch.device) -> dict[str, Tensor]:
    """input_ids, attention_mask [batch, longest text] and labels [batch, longest reference]."""
    labels = [torch.tensor(rows.labels[i]) for i in chosen]
    return {
        **_sources(rows, chosen, device),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED).to(device, non_blocking=True),
    }


def _sources(rows: Encoded, chosen: np.ndarray, device: torch.device) -> dict[str, Tensor]:
    ids = [torch.tensor(rows.source[i]) for i in chosen]
    padded = pad_sequence(ids, batch_first=True, padding_value=rows.tokenizer.pad_token_id)
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
    return {
        "input_ids": padded.to(device, non_blocking=True),
        "attention_mask": mask.to(device, non_blocking=True),
    }


def units(rows: Encoded, chosen: np.ndarray) -> int:
    return int(rows.counted[chosen].sum())


def loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The mean cross-entropy of a reference's token."""
    return token_losses(model, batch).sum() / (batch["labels"] != IGNORED).sum()


def token_losses(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """[batch, longest reference]: the cross-entropy of every token, 0 where padded. The model shifts the labels itself."""
    logits = at_least_fp32(model(**batch, use_cache=False).logits)
    return F.cross_entropy(logits.transpose(1, 2), batch["labels"], ignore_index=IGNORED, reduction="none")


@torch.no_grad()
def evaluate(model: nn.Module, rows: Encoded, plan: Plan, device: torch.device) -> dict[str, float]:
    """loss: the mean over all tokens of all references; the other metrics where texts are answered. Pruned triplets do not
    count (λ ⊙ mask)."""
    model.eval()

    def losses(chosen: np.ndarray) -> Tensor:
        with autocast(plan.precision, device):
            return token_losses(model, collate(rows, chosen, device)).sum(1)

    order = evaluation_order(rows.lengths, 2 * plan.batch_size)
    values = {"loss": parallel.over(order, losses).double().sum().item() / int(rows.counted.sum())}
    if rows.answered:
        texts = answers(model, rows, plan, device)
        wanted = rows.references[: rows.answered]
        values |= text_metrics.compute([m for m in plan.metrics if m != "loss"], texts, wanted)
    model.train()
    return values


def answers(model: Any, rows: Encoded, plan: Plan, device: torch.device) -> list[str]:
    """What the model makes of the first `answered` texts, in their order."""
    order = evaluation_order(rows.lengths[: rows.answered], plan.batch_size)
    pad = rows.tokenizer.pad_token_id

    def summaries(chosen: np.ndarray) -> Tensor:
        with autocast(plan.precision, device):
            out = model.generate(
                **_sources(rows, chosen, device),
                num_beams=rows.beams,
                do_sample=False,
                max_new_tokens=rows.max_new_tokens,
                synced_gpus=world() > 1 and plan.shard != "none",  # sharded weights need every rank to the end
            )
        new = torch.full((len(chosen), rows.max_new_tokens + 1), pad, device=device)
        new[:, : out.shape[1]] = out
        return new

    texts = rows.tokenizer.batch_decode(parallel.over(order, summaries), skip_special_tokens=True)
    return [texts[i] for i in np.argsort(np.concatenate(order))]
