"""Text generation by an encoder-decoder: the encoder reads the text, and the decoder writes the reference.

Labels are the reference's tokens with the model's own end token, −100 where padded. Evaluation decodes with beam search
and the model's own generation settings, as the published summarisation scripts do, and compares the result with the
reference.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adarank.errors import SettingError
from adarank.harness.config.spec import TrainConfig
from adarank.harness.data import cache
from adarank.harness.data.batches import check_lengths, evaluation_order, lengths
from adarank.harness.data.losses import IGNORED, cross_entropy
from adarank.harness.data.task_types.generate import Encoded, answered, decode, evaluate_texts
from adarank.harness.data.task_types.generate import collate as collate
from adarank.harness.data.task_types.generate import outputs as outputs
from adarank.harness.data.task_types.generate import units as units
from adarank.harness.data.tasks.base import Prompts, Task
from adarank.runs.predictions import Columns

AUTO = "AutoModelForSeq2SeqLM"
PROCESSOR = "AutoTokenizer"
FRESH_HEAD = False
ONE_PASS = None


def check(config: Any, model: str) -> None:
    if not config.is_encoder_decoder:
        raise SettingError(
            f"{model} must be an encoder-decoder for this task (got the architecture {config.model_type}); choose "
            "BART or T5, for example model=hub model.name=facebook/bart-large"
        )


def encode(task: Task, split: str, tokenizer: Any) -> Encoded:
    """Raises SettingError if a text, a reference or an answer may be too long for the model."""
    rows: Prompts = getattr(task, split)
    longest, count = task.options["max_new_tokens"], answered(task, split)
    if count != 0 and longest > tokenizer.model_max_length:
        raise SettingError(
            f"task.max_new_tokens must be at most {tokenizer.model_max_length}, the number of tokens that the model "
            f"reads (got {longest})"
        )
    references = [texts[0] for texts in rows.references]
    labels = _tokens("text_target", references, longest, task, split, tokenizer)
    texts = _tokens("text", rows.prompt, task.max_length, task, split, tokenizer)
    check_lengths(lengths(labels), references, split, "task.max_new_tokens", longest, tokenizer)
    check_lengths(lengths(texts), rows.prompt, split, "task.max_tokens", task.max_length, tokenizer)
    end, beams = tokenizer.eos_token_id, task.options["beams"]
    return Encoded(texts, labels, texts[:count], rows.references[:count], tokenizer, end, longest, beams)


def _tokens(side: str, texts: list[str], longest: int, task: Task, split: str, tokenizer: Any) -> list[list[int]]:
    """One list of at most `longest` ids per text; side: "text" or "text_target", an argument of tokenisers."""
    key = cache.key(tokenizer, rows=f"{task.fingerprint} {split}", kind=task.task_type, side=side, max_length=longest)
    tokens = cache.read(key)
    if tokens is None:
        tokens = {"input_ids": tokenizer(**{side: texts}, truncation=True, max_length=longest)["input_ids"]}
        cache.write(key, tokens)
    return tokens["input_ids"]


def loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The mean cross-entropy per token of the references."""
    return token_losses(model, batch).sum() / (batch["labels"] != IGNORED).sum()


def token_losses(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The cross-entropy of every token, [batch, longest reference], 0 for padding. The model shifts the labels."""
    return cross_entropy(model(**batch, use_cache=False).logits, batch["labels"])


def evaluate(
    model: nn.Module,
    rows: Encoded,
    names: Sequence[str],
    config: TrainConfig,
    device: torch.device,
    *,
    per_row: Callable[[Columns], None] | None = None,
) -> dict[str, float]:
    texts = partial(answers, model, rows, config, device)
    return evaluate_texts(model, rows, names, config, device, token_losses, texts, per_row)


def answers(model: Any, rows: Encoded, config: TrainConfig, device: torch.device) -> list[str]:
    """The model's answer to each of `rows.prompts`, in their order."""
    order = evaluation_order(lengths(rows.prompts), config.batch_size)

    def inputs(numbers: np.ndarray) -> tuple[Tensor, Tensor]:
        batch = collate(rows, numbers, device)
        return batch["input_ids"], batch["attention_mask"]

    settings = {"num_beams": rows.beams, "do_sample": False, "max_new_tokens": rows.max_new_tokens}
    tokens = decode(model, order, inputs, rows.max_new_tokens + 1, rows.pad, config, **settings)
    return rows.tokenizer.batch_decode(tokens, skip_special_tokens=True)
