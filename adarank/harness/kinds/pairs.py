"""Prompts and responses as tokens: [start tokens] prompt response [end token], cut to the task's length, with labels of
−100 on all but the response and its end."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adarank.errors import SettingError
from adarank.harness import cache
from adarank.harness.data import lengths
from adarank.harness.tasks.base import Prompts, Task

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

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each pair, int64 [pairs]."""
        return lengths(self.input_ids)


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
    made_of = {"rows": f"{task.fingerprint} {split}", "max_length": task.max_length, "kind": task.kind}
    key = cache.key(tokenizer, **made_of, specials=[before, end])  # the end token is not the backend's
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
