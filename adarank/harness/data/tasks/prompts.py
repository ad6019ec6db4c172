"""Turns prompts with responses, from files or the hub, into a checked `Task` that generates text."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from adarank.errors import SettingError
from adarank.harness.data.metrics.texts import not_computed
from adarank.harness.data.tasks.base import Prompts, Task, salted_order
from adarank.harness.data.tasks.hub import columns, open_splits
from adarank.harness.data.tasks.readers import Columns, folder, read_splits
from adarank.harness.data.tasks.rows import missing, require_rows, require_whole

DEV_ROWS = 500  # prompts in a dev set that is taken from train, but at most a tenth of train
OWN_METRICS = ("bleu", "rouge1", "rouge2", "rougeL", "exact_match")  # for answers to the user's own prompts


def read_own(
    task: str,
    path: str | None,
    name: str | None,
    config: str | None,
    revision: str | None,
    splits: Mapping[str, str | None],
) -> tuple[str, dict[str, tuple[str, Columns]]]:
    """(the data's title, {split: (origin, columns)}) of task.path or task.name; splits: those of the hub's data set.
    Raises SettingError unless exactly one of the two is given."""
    if path is not None and name is None:
        return folder(path).resolve().name, read_splits(path, required=("train",))
    if path is not None or name is None:
        raise SettingError(f"task={task} needs either task.path=FOLDER or task.name=NAME, a data set on the hub")
    use = "a data set's name while the hub can be reached, or task.path=FOLDER"
    data = open_splits(name, config, revision, splits, f"task.name={name}", use)
    return name, {role: (source, columns(rows)) for role, (source, rows) in data.items()}


def with_dev(splits: Mapping[str, Prompts], most: int = DEV_ROWS) -> dict[str, Prompts]:
    """The splits including dev, which consists of a tenth of train's prompts, but at most `most`, if there was none."""
    if "dev" in splits:
        return dict(splits)
    dev, train = carved(splits["train"], min(most, max(1, len(splits["train"]) // 10)))
    return {**splits, "train": train, "dev": dev}


def alpaca(instruction: str, given: str | None = None) -> str:
    """The prompt of Alpaca (Taori et al. 2023) without its preamble. given: the instruction's input, if it has one."""
    middle = "" if given is None else f"### Input:\n{given}\n\n"
    return f"### Instruction:\n{instruction}\n\n{middle}### Response:\n"


def grouped(source: str, prompts: Sequence[Any], responses: Sequence[Any]) -> Prompts:
    """Every prompt once, in the order of its first row, with the responses of all its rows as references.

    source: the rows' origin, for messages. Raises SettingError as `check_texts` does.
    """
    check_texts(source, prompts, responses)
    references: dict[str, list[str]] = {}
    for prompt, response in zip(prompts, responses, strict=True):
        references.setdefault(prompt, []).append(response)
    return Prompts(list(references), list(references.values()))


def check_texts(source: str, prompts: Sequence[Any], responses: Sequence[Any]) -> None:
    """Raise SettingError, naming the row, if a text is empty or not a string, or if there are no rows."""
    require_rows(source, {"prompt": prompts})
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True), 1):
        for role, value in (("prompt", prompt), ("response", response)):
            if missing(value):
                raise SettingError(f"{source}: the {role} of row {row} is empty; every row needs text")
            if not isinstance(value, str):
                raise SettingError(f"{source}: the {role} of row {row} must be text (got {value!r:.60})")
            require_whole(source, role, row, value)


def carved(rows: Prompts, count: int) -> tuple[Prompts, Prompts]:
    """(dev, train): the first `count` prompts in `salted_order`, at most half of all, and the others in their order."""
    if len(rows) < 2:
        raise SettingError("train has a single prompt, which cannot be split; give at least 2, or a dev split")
    dev = salted_order(rows.prompt)[: min(count, len(rows) // 2)]
    return rows.take(dev), rows.take(sorted(set(range(len(rows))) - set(dev)))


def limited(rows: Prompts, limit: int | None) -> Prompts:
    """Prompts with at most `limit` references in total, but at least one prompt, in their order; all if limit is None.

    They are the first in `salted_order`, since files may be sorted: E2E's first rows describe a few restaurants. Of
    several tasks that take turns, they are the first rows."""
    if limit is None:
        return rows
    order = salted_order(rows.prompt) if rows.part is None else list(range(len(rows)))
    totals = accumulate(len(rows.references[row]) for row in order)
    return rows.take(sorted(order[: max(1, sum(total <= limit for total in totals))]))


def assemble(
    name: str,
    splits: Mapping[str, Prompts],
    metrics: Sequence[str],
    metric: str,
    limit: int | None,
    max_tokens: int,
    max_new_tokens: int,
    generate_rows: int | None,
) -> Task:
    """A `Task` with the splits "train", "dev" and optionally "test".

    metrics: those of the answers to test; metric: "loss" or one of metrics, which selects the best checkpoint on dev;
    metrics other than the loss require answers to all dev prompts at every evaluation. Raises SettingError.
    """
    for setting, value in (("limit", limit), ("generate_rows", generate_rows), ("max_new_tokens", max_new_tokens)):
        if value is not None and value < 1:
            raise SettingError(f"task.{setting} must be at least 1 (got {value})")
    if metric != "loss" and metric not in metrics:
        raise SettingError(f"task.metric must be loss, {', '.join(metrics)} for {name} (got {metric})")
    if metric in (absent := not_computed([metric])):
        raise SettingError(
            f"task.metric={metric} cannot be computed: {absent[metric]}; pip install 'adarank[generation]', or use "
            "task.metric=loss"
        )
    kept = {key: limited(rows, limit) for key, rows in splits.items()}
    content = json.dumps([[key, rows.prompt, rows.references] for key, rows in kept.items()])
    parts: dict[str, Any] = {"test": None, **kept}
    return Task(
        name,
        **parts,
        labels=(),
        metrics=tuple(dict.fromkeys([metric, "loss", *metrics])),
        max_length=max_tokens,
        fingerprint=hashlib.sha256(content.encode("ascii")).hexdigest(),
        task_type="generate",
        options={"max_new_tokens": max_new_tokens, "generate_rows": generate_rows},
    )
