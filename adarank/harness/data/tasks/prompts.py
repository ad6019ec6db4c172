"""Prompts with responses: from columns as read to a checked `Task` that generates text."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from adarank.errors import SettingError
from adarank.harness.data.metrics.texts import not_computed
from adarank.harness.data.tasks.base import Prompts, Task, salted_order
from adarank.harness.data.tasks.rows import missing, require_rows, require_whole


def grouped(source: str, prompts: Sequence[Any], responses: Sequence[Any]) -> Prompts:
    """Every prompt once, in the order of its first row, with the responses of all its rows as references.

    source: where the rows come from, for messages. Raises SettingError, naming the row, if a text is empty or not a
    string.
    """
    require_rows(source, {"prompt": prompts})
    references: dict[str, list[str]] = {}
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True), 1):
        for role, value in (("prompt", prompt), ("response", response)):
            if missing(value):
                raise SettingError(f"{source}: the {role} of row {row} is empty; every row needs a text")
            if not isinstance(value, str):
                raise SettingError(f"{source}: the {role} of row {row} must be a text (got {value!r:.60})")
            require_whole(source, role, row, value)
        references.setdefault(prompt, []).append(response)
    return Prompts(list(references), list(references.values()))


def carved(rows: Prompts, count: int) -> tuple[Prompts, Prompts]:
    """(dev, train): the first `count` prompts in `salted_order`, at most half, and the others in their order."""
    if len(rows) < 2:
        raise SettingError("train has a single prompt, so no dev can be taken from it; give at least 2, or a dev split")
    dev = salted_order(rows.prompt)[: min(count, len(rows) // 2)]
    return rows.take(dev), rows.take(sorted(set(range(len(rows))) - set(dev)))


def limited(rows: Prompts, limit: int | None) -> Prompts:
    """The first prompts that have at most `limit` references together, but at least one prompt; all if limit is
    None."""
    if limit is None:
        return rows
    totals = accumulate(map(len, rows.references))
    return rows.take(range(max(1, sum(total <= limit for total in totals))))


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

    metrics: those of the answers to test; metric: "loss" or one of metrics, which chooses the best checkpoint on dev;
    other metrics than the loss need answers to all of dev at every evaluation. Raises SettingError.
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
