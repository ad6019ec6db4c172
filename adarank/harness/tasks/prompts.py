"""From prompts and responses as read to a checked `Task` that generates: what its loaders share."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from adarank.errors import SettingError
from adarank.harness.complaints import near
from adarank.harness.tasks.base import Prompts, Task
from adarank.harness.tasks.rows import missing, require_rows
from adarank.harness.tasks.text_metrics import not_computed

CARVE = "adarank 0"  # salts the order by which dev is carved from train; the run's own seed has no say in it


@dataclass(frozen=True)
class Pairs:
    """A split as read, one prompt and response a row. source: where from, for messages."""

    source: str
    prompt: list[Any]
    response: list[Any]


def pick(source: str, columns: Mapping[str, Sequence[Any]], wanted: Mapping[str, str]) -> dict[str, list[Any]]:
    """{setting: values} of the columns that {setting: column} names. Raises SettingError where one is not there."""
    require_rows(source, columns)
    for setting, name in wanted.items():
        if name not in columns:
            hint = near(name, columns)
            everything = f"; its columns: {', '.join(columns)}" if hint.startswith("near") else ""
            raise SettingError(f"{setting}={name}: {source} has no column {name}; {hint}{everything}")
    return {setting: list(columns[name][:]) for setting, name in wanted.items()}


def grouped(pairs: Pairs) -> Prompts:
    """Every prompt once, in the order of its first row, with the responses of all its rows as references.

    Raises SettingError, naming the row, for what is empty or no text.
    """
    require_rows(pairs.source, {"prompt": pairs.prompt})
    references: dict[str, list[str]] = {}
    for row, (prompt, response) in enumerate(zip(pairs.prompt, pairs.response, strict=True), 1):
        for what, value in (("prompt", prompt), ("response", response)):
            if missing(value):
                raise SettingError(f"{pairs.source}: the {what} of row {row} is empty; valid: a text in every row")
            if not isinstance(value, str):
                raise SettingError(
                    f"{pairs.source}: the {what} of row {row} is no text ({value!r:.60}); valid: strings"
                )
        references.setdefault(prompt, []).append(response)
    return Prompts(list(references), list(references.values()))


def carved(rows: Prompts, held_out: int) -> tuple[Prompts, Prompts]:
    """(dev, train): `held_out` prompts, at most half, by the order of their salted SHA-256; the rest in its order."""
    if len(rows) < 2:
        raise SettingError(
            "train has a single prompt, of which no dev can be carved; valid: at least 2, or a dev split"
        )
    digests = [hashlib.sha256(f"{CARVE}:{prompt}".encode()).digest() for prompt in rows.prompt]
    shuffled = sorted(range(len(rows)), key=lambda i: digests[i])[: min(held_out, len(rows) // 2)]
    return chosen(rows, shuffled), chosen(rows, sorted(set(range(len(rows))) - set(shuffled)))


def chosen(rows: Prompts, numbers: Sequence[int]) -> Prompts:
    return Prompts([rows.prompt[i] for i in numbers], [rows.references[i] for i in numbers])


def limited(rows: Prompts, limit: int | None) -> Prompts:
    """The first prompts that have no more than `limit` references together, at least one; all where it is None."""
    if limit is None:
        return rows
    totals = accumulate(map(len, rows.references))
    return chosen(rows, range(max(1, sum(total <= limit for total in totals))))


def assemble(
    name: str,
    splits: Mapping[str, Prompts],
    *,
    metrics: Sequence[str],
    metric: str,
    limit: int | None,
    max_tokens: int,
    max_new_tokens: int,
    generate_rows: int | None,
) -> Task:
    """A `Task` of "train", "dev" and, where there is one, "test". metrics: computed of what test is answered; metric: the
    one that chooses the best checkpoint on dev, "loss" or one of metrics, for which dev is answered at every evaluation."""
    for setting, value in (("limit", limit), ("generate_rows", generate_rows), ("max_new_tokens", max_new_tokens)):
        if value is not None and value < 1:
            raise SettingError(f"task.{setting}={value} leaves nothing; valid: at least 1")
    if metric != "loss" and metric not in metrics:
        raise SettingError(f"task.metric={metric} is not measured by {name}; valid: loss, {', '.join(metrics)}")
    if metric in (absent := not_computed([metric])):
        raise SettingError(
            f"task.metric={metric} cannot be computed: {absent[metric]}; valid: pip install 'adarank[generation]', or "
            "task.metric=loss"
        )
    kept = {key: limited(rows, limit) for key, rows in splits.items()}
    content = json.dumps([[key, rows.prompt, rows.references] for key, rows in kept.items()])
    return Task(
        name=name,
        train=kept["train"],
        dev=kept["dev"],
        test=kept.get("test"),
        labels=(),
        metrics=tuple(dict.fromkeys([metric, "loss", *metrics])),
        max_length=max_tokens,
        fingerprint=hashlib.sha256(content.encode("ascii")).hexdigest(),
        kind="generate",
        options={"max_new_tokens": max_new_tokens, "generate_rows": generate_rows},
    )
