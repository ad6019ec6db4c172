"""Extractive question answering: every token gets a start and an end score, and the answer is the best span of all
windows.

A context that is too long for the model is split into overlapping windows, each preceded by the question.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adarank.errors import SettingError
from adarank.harness.config.spec import TrainConfig
from adarank.harness.data import batches
from adarank.harness.data.batches import Encoded
from adarank.harness.data.metrics.spans import best_over_references, exact_match, f1, with_best_threshold
from adarank.harness.data.tasks.base import Task
from adarank.harness.data.tasks.questions import Questions
from adarank.harness.device import at_least_fp32, autocast
from adarank.harness.run import parallel
from adarank.runs.predictions import Columns

AUTO = "AutoModelForQuestionAnswering"
PROCESSOR = "AutoTokenizer"
FRESH_HEAD = True
ONE_PASS = "task type extract, whose loss includes padded tokens"
PADDED_SCORE = -1e4  # the score of a padded token
SPECIAL_TOKENS = 4  # of a window: RoBERTa's <s> question </s></s> context </s>
CANDIDATES = 20  # the number of best starts and best ends that a window combines, as in Transformers' run_qa


def check(config: Any, model: str) -> None:
    from transformers import MODEL_FOR_QUESTION_ANSWERING_MAPPING

    if type(config) not in MODEL_FOR_QUESTION_ANSWERING_MAPPING:
        raise SettingError(
            f"{model}: a {config.model_type} model cannot extract answers from a text; choose an encoder, for example "
            "model=hub model.name=roberta-base"
        )


def outputs(task: Task) -> int:
    return 2  # start and end


@dataclass(frozen=True)
class Windows(Encoded):
    """All windows of a split's questions.

    label: the first and the last token of the answer, int64 [windows, 2], both equal to `none` if the window does not
    contain the whole answer; none: the position of [CLS], which stands for no answer, [windows]; row: the question of
    each window, [windows]; offsets: for each window the first and last character in the context of every token, -1 for
    tokens outside the context, int32 [tokens, 2]; longest: the most tokens of an answer; none_allowed: whether a
    question may have no answer.
    """

    questions: Questions
    none: np.ndarray
    row: np.ndarray
    offsets: list[np.ndarray]
    longest: int
    none_allowed: bool


def encode(task: Task, split: str, tokenizer: Any) -> Windows:
    """Raises SettingError for a window that is too long for the model."""
    encoded = windows(getattr(task, split), tokenizer, task.max_length, **task.options)
    questions = [encoded.questions.question[i] for i in encoded.row]
    batches.check_lengths(encoded.lengths, questions, split, "task.max_length", task.max_length, tokenizer)
    return encoded


def windows(
    questions: Questions, tokenizer: Any, max_length: int, stride: int, longest_answer: int, none_allowed: bool
) -> Windows:
    """Windows of max_length tokens; neighbours share `stride` tokens of context. A question that would leave less than
    stride + 1 tokens for its context is truncated. Raises SettingError for a tokeniser without offsets."""
    if not tokenizer.is_fast:
        raise SettingError(
            f"model: {type(tokenizer).__name__} does not report where its tokens are in the text, which extracting "
            "answers needs; choose a model with a fast tokeniser"
        )
    encoded = tokenizer(
        _truncated(questions.question, tokenizer, max_length - stride - SPECIAL_TOKENS - 1),
        questions.context,
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    row = np.array(encoded["overflow_to_sample_mapping"])
    offsets = [_context_offsets(encoded, i) for i in range(len(row))]
    cls = tokenizer.cls_token_id
    none = np.array([ids.index(cls) if cls in ids else 0 for ids in encoded["input_ids"]])
    spans = [_span(questions, row[i], offsets[i], none[i]) for i in range(len(row))]
    pad = batches.padding(tokenizer)
    tokens = {part: encoded[part] for part in pad if part in encoded}
    labels = torch.tensor(spans)
    return Windows(tokens, labels, pad, questions, none, row, offsets, longest_answer, none_allowed)


def _truncated(texts: list[str], tokenizer: Any, most: int) -> list[str]:
    """The texts, each cut to at most `most` tokens."""
    offsets = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [text if len(at) <= most else text[: at[most - 1][1]] for text, at in zip(texts, offsets, strict=True)]


def _context_offsets(encoded: Any, window: int) -> np.ndarray:
    offsets = np.array(encoded["offset_mapping"][window], dtype=np.int32).reshape(-1, 2)
    offsets[[part != 1 for part in encoded.sequence_ids(window)]] = -1
    return offsets


def _span(questions: Questions, row: int, offsets: np.ndarray, none: int) -> tuple[int, int]:
    """The first and last token of the first acceptable answer, or `none` twice if the window lacks a part of it."""
    context = np.flatnonzero(offsets[:, 0] >= 0)
    if not questions.answers[row] or not len(context):
        return int(none), int(none)
    begin = questions.starts[row][0]
    end = begin + len(questions.answers[row][0])
    if offsets[context[0], 0] > begin or offsets[context[-1], 1] < end:
        return int(none), int(none)
    first = context[offsets[context, 0] <= begin][-1]
    last = context[offsets[context, 1] >= end][0]
    return int(first), int(last)


def collate(rows: Windows, numbers: np.ndarray, device: torch.device) -> dict[str, Tensor]:
    """Model inputs [batch, longest], start_positions and end_positions [batch]."""
    inputs, spans = batches.collate(rows, numbers, device)
    return {**inputs, "start_positions": spans[:, 0], "end_positions": spans[:, 1]}


def units(rows: Windows, numbers: np.ndarray) -> int:
    return len(numbers)


def loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    inputs = {name: tensor for name, tensor in batch.items() if not name.endswith("_positions")}
    out = model(**inputs)
    return span_loss(out.start_logits, out.end_logits, batch["start_positions"], batch["end_positions"])


def span_loss(start: Tensor, end: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """The mean of both cross-entropies over the tokens. start, end: [n, tokens]; first, last: [n]."""
    return (F.cross_entropy(at_least_fp32(start), first) + F.cross_entropy(at_least_fp32(end), last)) / 2


@torch.no_grad()
def evaluate(
    model: nn.Module,
    rows: Windows,
    names: Sequence[str],
    config: TrainConfig,
    device: torch.device,
    *,
    per_row: Callable[[Columns], None] | None = None,
) -> dict[str, float]:
    """SQuAD's metrics over all questions and the loss over all windows, without pruned triplets (λ ⊙ mask).

    per_row: receives the F1 of every question's answer as `score`, float32.
    """
    model.eval()
    lengths = rows.lengths
    order = batches.evaluation_order(lengths, 2 * config.batch_size)
    width = len(rows.tokens["input_ids"][order[0][0]])  # the longest come first

    def batch_scores(numbers: np.ndarray) -> Tensor:
        """[batch, 2, width]"""
        inputs, _ = batches.collate(rows, numbers, device)
        with autocast(config.precision, device):
            out = model(**batches.without_full_mask(inputs, lengths[numbers]))
        scores = torch.stack([out.start_logits, out.end_logits], dim=1).float()
        scores = scores.masked_fill(inputs["attention_mask"][:, None] == 0, PADDED_SCORE)
        return F.pad(scores, (0, width - scores.shape[-1]), value=PADDED_SCORE)

    scores = parallel.gather_batches(order, batch_scores).cpu()
    model.train()
    start, end = scores[np.argsort(np.concatenate(order))].unbind(1)
    spans = rows.label
    values = span_metrics(rows, start.numpy(), end.numpy(), names, per_row)
    return {**values, "loss": span_loss(start, end, spans[:, 0], spans[:, 1]).item()}


def span_metrics(
    rows: Windows,
    start: np.ndarray,
    end: np.ndarray,
    names: Sequence[str],
    per_row: Callable[[Columns], None] | None = None,
) -> dict[str, float]:
    """{name: value} for "f1" and "exact_match", and for "best_…" at the threshold that is best on these rows.

    start, end: scores of all windows' tokens, [windows, tokens]; every value is NaN if one of them is.
    """
    references = rows.questions.answers
    if not (np.isfinite(start).all() and np.isfinite(end).all()):
        if per_row is not None:
            per_row({"score": np.full(len(references), np.nan, dtype=np.float32)})
        return dict.fromkeys(names, float("nan"))
    spans, margin = answers(rows, start, end)
    given = ["" if rows.none_allowed and m > 0 else text for text, m in zip(spans, margin, strict=True)]
    if per_row is not None:
        per_row({"score": np.array(best_over_references(f1, given, references), dtype=np.float32)})
    values = {}
    for name in names:
        metric = {"f1": f1, "exact_match": exact_match}[name.removeprefix("best_")]
        if name.startswith("best_"):
            scores = best_over_references(metric, spans, references)
            values[name] = with_best_threshold(scores, [bool(r) for r in references], margin.tolist())
        else:
            values[name] = float(np.mean(best_over_references(metric, given, references)))
    return values


def answers(windows: Windows, start: np.ndarray, end: np.ndarray) -> tuple[list[str], np.ndarray]:
    """(the text of the best span, the score of no answer minus the score of the best span) for every question.

    start, end: scores of all windows' tokens, [windows, tokens]. A span's score is the start score of its first token
    plus the end score of its last. Of a question's windows, the best span and the lowest score of no answer count.
    """
    text = [""] * len(windows.questions)
    best = np.full(len(text), -np.inf)
    no_answer = np.full(len(text), np.inf)
    for i, row in enumerate(windows.row):
        no_answer[row] = min(no_answer[row], start[i, windows.none[i]] + end[i, windows.none[i]])
        context = np.flatnonzero(windows.offsets[i][:, 0] >= 0)
        firsts, lasts = (
            context[np.argsort(-scores[i, context], kind="stable")[:CANDIDATES]] for scores in (start, end)
        )
        length = lasts[None, :] - firsts[:, None] + 1
        score = start[i, firsts][:, None] + end[i, lasts][None, :]
        score = np.where((length >= 1) & (length <= windows.longest), score, -np.inf)
        if score.size and score.max() > best[row]:
            a, b = np.unravel_index(score.argmax(), score.shape)
            best[row] = score[a, b]
            begin, stop = windows.offsets[i][firsts[a], 0], windows.offsets[i][lasts[b], 1]
            text[row] = windows.questions.context[row][begin:stop]
    return text, no_answer - best
