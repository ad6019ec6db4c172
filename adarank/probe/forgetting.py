"""Forgetting: the quality of sentence embeddings, or of language modelling, before and after fine-tuning."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adarank.errors import SettingError
from adarank.harness.data.batches import Encoded, collate, encode, evaluation_order
from adarank.harness.data.losses import IGNORED, cross_entropy
from adarank.harness.data.metrics.labels import spearman
from adarank.harness.data.tasks.base import Split
from adarank.harness.data.tasks.glue import glue
from adarank.probe.reload import FinishedRun, load_trained_weights, open_run

BATCH = 64


def measure(folder: Path, stsb: str | None, text: str | None) -> dict[str, Any]:
    """Before and after the run in `folder`: {"stsb": …} for a folder with STS-B, {"text": …} for a text file.

    Raises SettingError if the data cannot be read or the run's model cannot be measured on them.
    """
    run = open_run(folder)
    if run.built.tokenizer is None:
        raise SettingError(
            f"--stsb and --text need a text model, but the run in {folder} is on images ({run.task.name})"
        )
    measures: dict[str, tuple[dict[str, Any], Callable[[], float]]] = {}
    if stsb is not None:
        measures["stsb"] = _embeddings_measure(run, stsb)
    if text is not None:
        measures["text"] = _text_measure(run, text)
    before = {name: value() for name, (_, value) in measures.items()}
    load_trained_weights(run)
    return {name: {**head, "before": before[name], "after": value()} for name, (head, value) in measures.items()}


def _embeddings_measure(run: FinishedRun, folder: str) -> tuple[dict[str, Any], Callable[[], float]]:
    task = glue("stsb", folder)
    split = task.test or task.dev
    name = "dev" if task.test is None else "test"
    head = {"metric": "spearman", "split": name, "rows": len(split), "fingerprint": task.fingerprint}
    return head, lambda: similarity_spearman(run.model, run.built.tokenizer, split, task.max_length, run.device)


def _text_measure(run: FinishedRun, file: str) -> tuple[dict[str, Any], Callable[[], float]]:
    try:
        texts = [line for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"--text {file} must be a text file in UTF-8 ({error})") from None
    if not texts:
        raise SettingError(f"--text {file} is empty; it must have one text per line")
    if run.built.model.get_output_embeddings() is None:
        raise SettingError(f"--text needs a causal language model, but the model of {run.folder} predicts no tokens")
    head = {"metric": "nats per token", "file": Path(file).name, "texts": len(texts)}
    length = run.task.max_length
    return head, lambda: language_loss(run.model, run.built.tokenizer, texts, length, run.device)


@torch.no_grad()
def similarity_spearman(model: Any, tokenizer: Any, split: Split, max_length: int, device: torch.device) -> float:
    """Zero-shot STS: Spearman's correlation between the cosine of two sentences' embeddings and their rated similarity.

    split: pairs with float targets. An embedding is the mean of the last hidden states over the tokens except padding,
    without the head (Sentence-BERT, arXiv 1908.10084).
    """
    assert split.pair is not None, "similarity needs pairs of sentences"
    first, second = (embeddings(model, tokenizer, texts, max_length, device) for texts in (split.text, split.pair))
    cosine = F.cosine_similarity(first, second)
    return spearman(cosine.double().cpu().numpy(), split.label.astype(np.float64))


@torch.no_grad()
def embeddings(model: Any, tokenizer: Any, texts: Sequence[str], max_length: int, device: torch.device) -> Tensor:
    """Mean-pooled last hidden states of the model below its head, float32 [texts, width], in the texts' order."""
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
    """Mean negative log-likelihood of a causal LM in nats per predicted token; texts are cut to `max_length` tokens.

    Every token except a text's first is predicted from those before it; padding is masked. Raises SettingError if no
    text has two tokens.
    """
    model.eval()
    rows, encoded = _encoded(tokenizer, texts, max_length)
    total, count = 0.0, 0
    for batch in rows:
        inputs, _ = collate(encoded, batch, device)
        real = inputs["attention_mask"][:, 1:].bool()
        labels = inputs["input_ids"][:, 1:].masked_fill(~real, IGNORED)
        total += float(cross_entropy(model(**inputs).logits[:, :-1].double(), labels).sum())
        count += int(real.sum())
    if not count:
        raise SettingError(
            "--text needs texts of at least two tokens (no text has two tokens, so nothing is predicted)"
        )
    return total / count if math.isfinite(total) else math.nan


def _encoded(tokenizer: Any, texts: Sequence[str], max_length: int) -> tuple[list[np.ndarray], Encoded]:
    encoded = encode(Split(list(texts), None, np.zeros(len(texts), np.int64)), tokenizer, max_length)
    return evaluation_order(encoded.lengths, BATCH), encoded
