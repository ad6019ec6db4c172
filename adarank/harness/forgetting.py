"""What fine-tuning took from the model: its sentence embeddings, or its language modelling, before and after."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adarank.errors import SettingError
from adarank.harness.data import Encoded, collate, encode, evaluation_order
from adarank.harness.finished import Finished, finish, open_run
from adarank.harness.tasks import metrics
from adarank.harness.tasks.base import Split
from adarank.harness.tasks.glue import glue

BATCH = 64


def measure(folder: Path, stsb: str | None, text: str | None) -> dict[str, Any]:
    """Before and after the run in `folder`: {"stsb": …} where a folder with STS-B is given, {"text": …} for a text file.

    Raises SettingError where the data cannot be read or the run's model is of the other kind.
    """
    run = open_run(folder)
    asked: dict[str, tuple[dict[str, Any], Any]] = {}
    if stsb is not None:
        asked["stsb"] = _of_embeddings(run, stsb)
    if text is not None:
        asked["text"] = _of_text(run, text)
    before = {name: figure() for name, (_, figure) in asked.items()}
    finish(run)
    return {name: {**head, "before": before[name], "after": figure()} for name, (head, figure) in asked.items()}


def _of_embeddings(run: Finished, folder: str) -> tuple[dict[str, Any], Any]:
    task = glue("stsb", folder)
    split = task.test or task.dev
    name = "dev" if task.test is None else "test"
    head = {"metric": "spearman", "split": name, "rows": len(split), "fingerprint": task.fingerprint}
    return head, lambda: similarity_spearman(run.model, run.built.tokenizer, split, task.max_length, run.device)


def _of_text(run: Finished, file: str) -> tuple[dict[str, Any], Any]:
    try:
        texts = [line for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"--text {file} cannot be read ({error}); valid: a text file in UTF-8") from None
    if not texts:
        raise SettingError(f"--text {file} is empty; valid: a text a line")
    if run.built.model.get_output_embeddings() is None:
        raise SettingError(f"--text does not go with {run.folder}, whose model predicts no tokens; valid: a causal LM")
    head = {"metric": "nats per token", "file": Path(file).name, "texts": len(texts)}
    length = run.task.max_length
    return head, lambda: language_loss(run.model, run.built.tokenizer, texts, length, run.device)


@torch.no_grad()
def similarity_spearman(model: Any, tokenizer: Any, split: Split, max_length: int, device: torch.device) -> float:
    """Zero-shot STS: Spearman of the cosine of two sentences' embeddings with their similarity as rated.

    split: pairs with float targets. The embedding is the mean of the last hidden states over the tokens that are no
    padding, without the head (Sentence-BERT, arXiv 1908.10084).
    """
    assert split.pair is not None, "similarity is that of pairs"
    first, second = (embeddings(model, tokenizer, texts, max_length, device) for texts in (split.text, split.pair))
    cosine = F.cosine_similarity(first, second)
    return metrics.spearman(cosine.double().cpu().numpy(), split.label.astype(np.float64))


@torch.no_grad()
def embeddings(model: Any, tokenizer: Any, texts: Sequence[str], max_length: int, device: torch.device) -> Tensor:
    """Mean-pooled last hidden states of the model below its head, [texts, width], in the texts' order."""
    base: nn.Module = model.base_model
    base.eval()
    rows, encoded = _encoded(tokenizer, texts, max_length)
    pooled = []
    for batch in rows:
        inputs, _ = collate(encoded, batch, device)
        hidden = base(**inputs).last_hidden_state.float()
        mask = inputs["attention_mask"].unsqueeze(-1)
        pooled.append((hidden * mask).sum(1) / mask.sum(1))
    return torch.cat(pooled)[torch.from_numpy(np.argsort(np.concatenate(rows))).to(device)]


@torch.no_grad()
def language_loss(model: Any, tokenizer: Any, texts: Sequence[str], max_length: int, device: torch.device) -> float:
    """Mean negative log-likelihood of a causal LM in nats per predicted token, every text cut to `max_length` tokens.

    Each token but a text's first is predicted from those before it; padding is neither predicted nor seen. Raises
    SettingError where no text has two tokens.
    """
    model.eval()
    rows, encoded = _encoded(tokenizer, texts, max_length)
    total, count = 0.0, 0
    for batch in rows:
        inputs, _ = collate(encoded, batch, device)
        real = inputs["attention_mask"][:, 1:].bool()
        logits = model(**inputs).logits[:, :-1].double()
        loss = F.cross_entropy(logits.transpose(1, 2), inputs["input_ids"][:, 1:], reduction="none")
        total += float(loss.masked_fill(~real, 0.0).sum())
        count += int(real.sum())
    if not count:
        raise SettingError("--text: no text has two tokens, so that there is nothing to predict; valid: longer texts")
    return total / count if math.isfinite(total) else math.nan


def _encoded(tokenizer: Any, texts: Sequence[str], max_length: int) -> tuple[list[np.ndarray], Encoded]:
    encoded = encode(Split(list(texts), None, np.zeros(len(texts), np.int64)), tokenizer, max_length)
    return evaluation_order(encoded.lengths, BATCH), encoded
