"""Conversations of one or more turns, from your own files or the hub, rendered with the model's own chat template."""

import json
from dataclasses import replace
from typing import Any, Literal

from adarank.errors import SettingError
from adarank.harness.data.tasks.base import Prompts, Task, Turn
from adarank.harness.data.tasks.prompts import OWN_METRICS, assemble, read_own, with_dev
from adarank.harness.data.tasks.readers import Columns
from adarank.harness.data.tasks.rows import missing, pick_columns, require_whole

ROLES = ("system", "user", "assistant")


def chat(
    path: str | None = None,
    name: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    messages: str = "messages",
    train: str = "train",
    dev: str | None = None,
    test: str | None = None,
    metric: Literal["loss", "bleu", "rouge1", "rouge2", "rougeL", "exact_match"] = "loss",
    limit: int | None = None,
    max_tokens: int = 1024,
    max_new_tokens: int = 128,
    generate_rows: int | None = None,
) -> Task:
    """Conversations from the folder `path` (train and optionally dev and test, as .jsonl or .json, optionally
    compressed as .gz, or .parquet), or from the hub's data set `name` (train, dev, test: its splits). Without a dev
    split, dev is taken from train.

    messages: the column that holds, for every row, a list of {"role": "system" | "user" | "assistant", "content":
    text}; other keys of a message are ignored. All assistant turns count in the loss. The last one is the reference for
    the model's answer to the turns before it; later turns are omitted. Raises SettingError, naming file and row.
    """
    title, read = read_own("chat", path, name, config, revision, {"train": train, "dev": dev, "test": test})
    rows = {split: conversations(source, table, messages) for split, (source, table) in read.items()}
    sizes = (limit, max_tokens, max_new_tokens, generate_rows)
    task = assemble(title, with_dev(rows), OWN_METRICS, metric, *sizes)
    return replace(task, options={**task.options, "template": "chat"})


def conversations(source: str, table: Columns, messages: str) -> Prompts:
    """One prompt per conversation of a table: the turns before the last assistant turn, which is the reference."""
    picked = pick_columns(source, table, {"task.messages": messages})["task.messages"]
    checked = [_conversation(source, row, turns) for row, turns in enumerate(picked, 1)]
    turns = [conversation[:-1] for conversation in checked]
    references = [[conversation[-1]["content"]] for conversation in checked]
    return Prompts([json.dumps(before) for before in turns], references, turns)


def _conversation(source: str, row: int, messages: Any) -> list[Turn]:
    """The messages up to the last assistant turn. Raises SettingError, naming row and turn, if there is none or a
    message cannot be used."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise SettingError(
            f"{source}: row {row} must have a list of messages, each with role and content (got {messages!r:.60})"
        )
    turns = []
    for number, message in enumerate(messages, 1):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise SettingError(
                f"{source}: the role of turn {number} in row {row} must be {', '.join(ROLES[:-1])} or {ROLES[-1]} (got "
                f"{role!r:.60})"
            )
        if missing(content):
            raise SettingError(f"{source}: turn {number} of row {row} ({role}) is empty; every turn needs text")
        if not isinstance(content, str):
            raise SettingError(
                f"{source}: the content of turn {number} in row {row} must be text (got {content!r:.60})"
            )
        require_whole(source, f"turn {number}", row, content)
        turns.append({"role": role, "content": content})
    answers = [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]
    if not answers:
        raise SettingError(f"{source}: row {row} has no assistant turn, so that none of its tokens would count")
    if answers[0] == 0:
        raise SettingError(
            f"{source}: row {row} begins with an assistant turn; it must begin with a system or user turn"
        )
    return turns[: answers[-1] + 1]
