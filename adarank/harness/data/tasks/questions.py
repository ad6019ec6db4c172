"""Questions whose answer is a span of a text: SQuAD 1.1 and 2.0, from a folder or from the hub."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from adarank.errors import SettingError
from adarank.harness.data.tasks.base import Rows, Task
from adarank.harness.data.tasks.hub import read_hub
from adarank.harness.data.tasks.readers import folder_with
from adarank.harness.data.tasks.rows import check_sizes, require_whole

HUB = {  # repositories in Parquet, without a script
    "squad": ("rajpurkar/squad", None, "7b6d24c440a36b6815f21b70d25016731768db1f"),
    "squad_v2": ("rajpurkar/squad_v2", None, "3ffb306f725f7d2ce8394bc1873b24868140c412"),
}
VERSION = {"squad": "v1.1", "squad_v2": "v2.0"}


@dataclass(frozen=True)
class Questions(Rows):
    """Questions with answers, the rows of one split in a fixed order.

    question, context: one text per row; answers: the acceptable answers of each row, none if the context has no answer;
    starts: the character of the context at which each answer begins.
    """

    question: list[str]
    context: list[str]
    answers: list[list[str]]
    starts: list[list[int]]


def squad(
    name: Literal["squad", "squad_v2"],
    path: str | None = None,
    limit: int | None = None,
    max_length: int = 384,
    stride: int | None = None,
    longest_answer: int = 30,
) -> Task:
    """SQuAD 1.1 or 2.0. Results are reported on the dev rows, because the test rows were never published.

    path: a folder with the official train-v1.1.json and dev-v1.1.json (or v2.0); None: the hub. max_length: tokens of a
    question with a window of its context; stride: tokens that neighbouring windows share, by default a third of
    max_length (128 of 384); longest_answer: tokens. In 2.0, a question is left unanswered if the score of no answer,
    that of [CLS], is above the best span's (the threshold 0 of Transformers' run_qa); best_exact_match and best_f1 use
    the threshold that is best on the rows themselves, as the official evaluation does. Raises SettingError.
    """
    check_sizes(limit, max_length)
    stride = max_length // 3 if stride is None else stride
    if not 0 <= stride <= max_length // 2:
        raise SettingError(f"task.stride must be from 0 to {max_length // 2}, half of task.max_length (got {stride})")
    if longest_answer < 1:
        raise SettingError(f"task.longest_answer must be at least 1 token (got {longest_answer})")
    splits = _local(name, path, limit) if path is not None else _hub(name, limit)
    none_allowed = name == "squad_v2"
    for split, rows in splits.items():
        if not none_allowed and [] in rows.answers:
            row = rows.answers.index([]) + 1
            raise SettingError(f"task=squad: row {row} of {split} has no answer; use task=squad_v2 for such data")
    return Task(
        name,
        **splits,
        test=None,
        labels=(),
        metrics=("f1", "exact_match", *(("best_f1", "best_exact_match") if none_allowed else ())),
        max_length=max_length,
        fingerprint=hashlib.sha256(json.dumps([vars(rows) for rows in splits.values()]).encode("ascii")).hexdigest(),
        task_type="extract",
        options={"stride": stride, "longest_answer": longest_answer, "none_allowed": none_allowed},
    )


def _local(name: str, path: str, limit: int | None) -> dict[str, Questions]:
    files = {split: f"{split}-{VERSION[name]}.json" for split in ("train", "dev")}
    where = folder_with(path, *files.values(), owner="SQuAD's official ")
    return {
        split: _questions(_official(where / file, path), limit, f"{file} (task.path={path})")
        for split, file in files.items()
    }


def _official(file: Path, path: str) -> Iterator[Mapping[str, Any]]:
    """The rows of an official file, in the hub's format."""
    try:
        articles = json.loads(file.read_text(encoding="utf-8"))["data"]
        for paragraph in (p for article in articles for p in article["paragraphs"]):
            for row in paragraph["qas"]:
                answers = row["answers"]
                yield {
                    "question": row["question"],
                    "context": paragraph["context"],
                    "answers": {
                        "text": [answer["text"] for answer in answers],
                        "answer_start": [answer["answer_start"] for answer in answers],
                    },
                }
    except (ValueError, KeyError, TypeError) as error:
        raise SettingError(
            f"{file.name} (task.path={path}) must have SQuAD's layout ({type(error).__name__}: {error})"
        ) from None


def _hub(name: str, limit: int | None) -> dict[str, Questions]:
    files = " and ".join(f"{split}-{VERSION[name]}.json" for split in ("train", "dev"))
    data = read_hub(HUB[name], {"train": "train", "dev": "validation"}, name, files)
    return {role: _questions(iter(rows), limit, source) for role, (source, rows) in data.items()}


def _questions(rows: Iterator[Mapping[str, Any]], limit: int | None, source: str) -> Questions:
    """Checked rows, the first `limit` of them."""
    kept = [row for row, _ in zip(rows, range(limit), strict=False)] if limit is not None else list(rows)
    if not kept:
        raise SettingError(f"{source} has no rows; every split needs at least one")
    for number, row in enumerate(kept, 1):
        for name in ("question", "context"):
            require_whole(source, name, number, row[name])
        answers = row["answers"]
        for text, start in zip(answers["text"], answers["answer_start"], strict=True):
            if row["context"][start : start + len(text)] != text:
                raise SettingError(
                    f"{source}: the context of row {number} does not have the answer {text!r:.60} at character "
                    f"{start}; answer_start must count characters of the context"
                )
    return Questions(
        [row["question"].strip() for row in kept],
        [row["context"] for row in kept],
        [list(row["answers"]["text"]) for row in kept],
        [list(row["answers"]["answer_start"]) for row in kept],
    )
