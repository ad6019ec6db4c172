"""A question with a piece of its context, as many times as the context needs, and the way back from scores to an answer."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from adarank.errors import SettingError
from adarank.harness.data import Encoded
from adarank.harness.tasks.questions import Questions

MARKS = 4  # special tokens of a window: RoBERTa's <s> question </s></s> context </s>
TRIED = 20  # starts and ends of a window that are tried with one another, as in Transformers' run_qa


@dataclass(frozen=True)
class Windows:
    """All windows of a split's questions.

    encoded: their tokens, and as label the first and the last token of the answer, int64 [windows, 2], both that of
    `none` where the window does not hold the whole answer; none: the token that means so, [CLS] [windows]; row: the
    question of each window [windows]; offsets: for each token of a window where in the context it begins and ends, in
    characters, -1 for those that are not of the context: int32 [tokens, 2]; longest: tokens of an answer; none_allowed:
    whether a question may have no answer.
    """

    questions: Questions
    encoded: Encoded
    none: np.ndarray
    row: np.ndarray
    offsets: list[np.ndarray]
    longest: int
    none_allowed: bool

    def __len__(self) -> int:
        return len(self.row)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each window, int64 [windows]."""
        return self.encoded.lengths


def windows(
    questions: Questions, tokenizer: Any, max_length: int, stride: int, longest_answer: int, none_allowed: bool
) -> Windows:
    """Windows of max_length tokens, neighbours with `stride` tokens of context in common. A question that would leave
    less than stride + 1 tokens for its context is cut. Raises SettingError for a tokeniser without offsets."""
    if not tokenizer.is_fast:
        raise SettingError(
            f"model: {type(tokenizer).__name__} does not say where its tokens are in the text, which answers need; valid: "
            "a model with a fast tokeniser"
        )
    found = tokenizer(
        _cut(questions.question, tokenizer, max_length - stride - MARKS - 1),
        questions.context,
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    row = np.array(found["overflow_to_sample_mapping"])
    offsets = [_of_context(found, i) for i in range(len(row))]
    mark = tokenizer.cls_token_id
    none = np.array([ids.index(mark) if mark in ids else 0 for ids in found["input_ids"]])
    spans = [_span(questions, row[i], offsets[i], none[i]) for i in range(len(row))]
    pad = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id, "attention_mask": 0}
    encoded = Encoded({kind: found[kind] for kind in pad if kind in found}, torch.tensor(spans), pad)
    return Windows(questions, encoded, none, row, offsets, longest_answer, none_allowed)


def _cut(texts: list[str], tokenizer: Any, most: int) -> list[str]:
    """The texts, none longer than `most` tokens."""
    found = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [text if len(at) <= most else text[: at[most - 1][1]] for text, at in zip(texts, found, strict=True)]


def _of_context(found: Any, window: int) -> np.ndarray:
    offsets = np.array(found["offset_mapping"][window], dtype=np.int32).reshape(-1, 2)
    offsets[[part != 1 for part in found.sequence_ids(window)]] = -1
    return offsets


def _span(questions: Questions, row: int, offsets: np.ndarray, none: int) -> tuple[int, int]:
    """The first and last token of the first acceptable answer, or `none` twice where the window lacks a part of it."""
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


def answers(windows: Windows, start: np.ndarray, end: np.ndarray) -> tuple[list[str], np.ndarray]:
    """(the best span's text, by how much the score of no answer exceeds its) of every question.

    start, end: scores of all windows' tokens [windows, tokens]. A span's score is that of its first token as a start plus
    that of its last as an end; of a question's windows the best one's counts, and the lowest score of no answer.
    """
    text = [""] * len(windows.questions)
    best = np.full(len(text), -np.inf)
    nothing = np.full(len(text), np.inf)
    for i, row in enumerate(windows.row):
        nothing[row] = min(nothing[row], start[i, windows.none[i]] + end[i, windows.none[i]])
        context = np.flatnonzero(windows.offsets[i][:, 0] >= 0)
        firsts, lasts = (context[np.argsort(-scores[i, context], kind="stable")[:TRIED]] for scores in (start, end))
        length = lasts[None, :] - firsts[:, None] + 1
        score = start[i, firsts][:, None] + end[i, lasts][None, :]
        score = np.where((length >= 1) & (length <= windows.longest), score, -np.inf)
        if score.size and score.max() > best[row]:
            a, b = np.unravel_index(score.argmax(), score.shape)
            best[row] = score[a, b]
            begin, stop = windows.offsets[i][firsts[a], 0], windows.offsets[i][lasts[b], 1]
            text[row] = windows.questions.context[row][begin:stop]
    return text, nothing - best
