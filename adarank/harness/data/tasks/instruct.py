"""Instructions and responses, from your own files or the hub."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from adarank.harness.data.tasks.base import Prompts, Task
from adarank.harness.data.tasks.prompts import OWN_METRICS, alpaca, assemble, grouped, read_own, with_dev
from adarank.harness.data.tasks.readers import Columns
from adarank.harness.data.tasks.rows import missing, pick_columns


def instruct(
    path: str | None = None,
    name: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    prompt: str | None = None,
    response: str | None = None,
    template: Literal["auto", "chat", "alpaca", "plain"] = "auto",
    train: str = "train",
    dev: str | None = None,
    test: str | None = None,
    metric: Literal["loss", "bleu", "rouge1", "rouge2", "rougeL", "exact_match"] = "loss",
    limit: int | None = None,
    max_tokens: int = 512,
    max_new_tokens: int = 128,
    generate_rows: int | None = None,
) -> Task:
    """Prompts and responses from the folder `path` (train and optionally dev and test, in any format of task=files), or
    from the hub's data set `name` (train, dev, test: its splits). Without a dev split, dev is taken from train.

    prompt, response: names of columns. None: `prompt` and `response`, or else `instruction`, `input` (which may be
    absent) and `output`.

    template: "chat" makes the prompt the user's turn in the chat template of the model's tokenizer; "plain" is the
    prompt and a line break (an instruction with an input: both, with an empty line between them); "alpaca" is Alpaca's
    format (Taori et al. 2023) without its preamble. "auto" is "chat" if the tokenizer has a template, otherwise
    "alpaca" for Alpaca's columns and "plain" for others. Raises SettingError, naming file and row.
    """
    title, read = read_own("instruct", path, name, config, revision, {"train": train, "dev": dev, "test": test})
    rows = {split: instructions(source, table, prompt, response, template) for split, (source, table) in read.items()}
    sizes = (limit, max_tokens, max_new_tokens, generate_rows)
    task = assemble(title, with_dev(rows), OWN_METRICS, metric, *sizes)
    return task if template == "auto" else replace(task, options={**task.options, "template": template})


def instructions(source: str, table: Columns, prompt: str | None, response: str | None, template: str) -> Prompts:
    """The prompts and responses of one table; the other arguments are those of `instruct`."""
    by_column = prompt is None and response is None and "prompt" not in table and "instruction" in table
    names = ("instruction", "output") if by_column else (prompt or "prompt", response or "response")
    picked = pick_columns(source, table, dict(zip(("task.prompt", "task.response"), names, strict=True)))
    asked = picked["task.prompt"]
    inputs = table["input"] if by_column and "input" in table else [None] * len(asked)
    inputs = [None if missing(given) else given for given in inputs]
    pairs = list(zip(asked, inputs, strict=True))
    form: Callable[[str, str | None], str] = _plain
    if template == "alpaca" or (template != "plain" and by_column):
        form = alpaca
    # Values that are not text remain unchanged, so that `grouped` refuses them.
    texts = [form(*pair) if isinstance(pair[0], str) and not missing(pair[0]) else pair[0] for pair in pairs]
    rows = grouped(source, texts, picked["task.response"])
    if template in ("alpaca", "plain"):
        return rows
    request = {text: _request(*pair) for text, pair in zip(texts, pairs, strict=True)}
    return replace(rows, turns=[[{"role": "user", "content": request[text]}] for text in rows.prompt])


def _request(ask: str, given: str | None) -> str:
    return ask if given is None else f"{ask}\n\n{given}"


def _plain(ask: str, given: str | None) -> str:
    return f"{_request(ask, given)}\n"
