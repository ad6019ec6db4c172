"""Questions whose answers are spans of a text: SQuAD 1.1 and 2.0, from a folder or from the hub."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from adarank.errors import SettingError
from adarank.harness.tasks.base import Task
from adarank.harness.tasks.hub import download
from adarank.harness.tasks.readers import folder, holds
from adarank.harness.tasks.rows import check_sizes

HUB = {  # Parquet, no script
    "squad": ("rajpurkar/squad", "7b6d24c440a36b6815f21b70d25016731768db1f"),
    "squad_v2": ("rajpurkar/squad_v2", "3ffb306f725f7d2ce8394bc1873b24868140c412"),
}
VERSION = {"squad": "v1.1", "squad_v2": "v2.0"}


@dataclass(frozen=True)
class Questions:
    """Rows in a fixed order.

    question, context: a text a row; answers: the acceptable texts of each row, none where the context has no answer;
    starts: where each begins in the context, in characters.
    """

    question: list[str]
    context: list[str]
    answers: list[list[str]]
    starts: list[list[int]]

    def __len__(self) -> int:
        return len(self.question)

    def take(self, rows: np.ndarray) -> "Questions":
        """The rows of the given numbers, in that order."""
        question, context = ([texts[i] for i in rows] for texts in (self.question, self.context))
        return Questions(question, context, [self.answers[i] for i in rows], [self.starts[i] for i in rows])


def squad(
    name: Literal["squad", "squad_v2"],
    path: str | None = None,
    limit: int | None = None,
    max_length: int = 384,
    stride: int | None = None,
    longest_answer: int = 30,
) -> Task:
    """SQuAD 1.1 or 2.0; its dev rows are what is reported, its test rows were never published.

    path: a folder with the official train-v1.1.json and dev-v1.1.json (or v2.0); None: the hub. max_length: tokens of a
    question with a window of its context; stride: tokens that neighbouring windows share, by default a third of
    max_length (128 of 384); longest_answer: tokens. In 2.0 no answer is given where its score, that of [CLS], is above the
    best span's (the threshold 0 of Transformers' run_qa); best_exact_match and best_f1 take the threshold that is best
    on the rows themselves, as the official evaluation does. Raises SettingError saying what was looked for.
    """
    check_sizes(limit, max_length)
    stride = max_length // 3 if stride is None else stride
    if not 0 <= stride <= max_length // 2:
        raise SettingError(
            f"task.stride={stride} is out of range; valid: from 0 to {max_length // 2}, half of max_length"
        )
    if longest_answer < 1:
        raise SettingError(f"task.longest_answer={longest_answer} keeps no answer; valid: at least 1 token")
    splits = _local(name, path, limit) if path is not None else _hub(name, limit)
    none_allowed = name == "squad_v2"
    if not none_allowed:
        _refuse_unanswerable(splits)
    return Task(
        name=name,
        train=splits["train"],
        dev=splits["dev"],
        test=None,
        labels=(),
        metrics=("f1", "exact_match", *(("best_f1", "best_exact_match") if none_allowed else ())),
        max_length=max_length,
        fingerprint=hashlib.sha256(json.dumps([vars(rows) for rows in splits.values()]).encode("ascii")).hexdigest(),
        kind="extract",
        options={"stride": stride, "longest_answer": longest_answer, "none_allowed": none_allowed},
    )


def _local(name: str, path: str, limit: int | None) -> dict[str, Questions]:
    where = folder(path)
    files = {split: where / f"{split}-{VERSION[name]}.json" for split in ("train", "dev")}
    for file in files.values():
        if not file.is_file():
            raise SettingError(f"task.path={path} has no {file.name}; valid: SQuAD's official files ({holds(where)})")
    return {
        split: _questions(_official(file, path), limit, f"{file.name} (task.path={path})")
        for split, file in files.items()
    }


def _official(file: Path, path: str) -> Iterator[Mapping[str, Any]]:
    """The rows of an official file, in the hub's form."""
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
            f"{file.name} (task.path={path}) is not in SQuAD's layout ({type(error).__name__}: {error}); valid: the official file"
        ) from None


def _hub(name: str, limit: int | None) -> dict[str, Questions]:
    repository, revision = HUB[name]
    what = f"task={name} without task.path: {repository}"
    files = " and ".join(f"{split}-{VERSION[name]}.json" for split in ("train", "dev"))
    found = download(repository, None, revision, what, f"task.path=FOLDER with {files}")
    splits = {"train": "train", "dev": "validation"}
    return {role: _questions(iter(found[split]), limit, f"split {split} ({what})") for role, split in splits.items()}


def _questions(rows: Iterator[Mapping[str, Any]], limit: int | None, source: str) -> Questions:
    """Checked rows, the first `limit` of them."""
    kept = [row for row, _ in zip(rows, range(limit), strict=False)] if limit is not None else list(rows)
    if not kept:
        raise SettingError(f"{source} has no rows; valid: at least one row a split")
    for number, row in enumerate(kept, 1):
        answers = row["answers"]
        for text, start in zip(answers["text"], answers["answer_start"], strict=True):
            if row["context"][start : start + len(text)] != text:
                raise SettingError(
                    f"{source}: the answer {text!r:.60} of row {number} is not where it is said to be, at character {start}; "
                    "valid: answer_start in characters of the context"
                )
    return Questions(
        [row["question"].strip() for row in kept],
        [row["context"] for row in kept],
        [list(row["answers"]["text"]) for row in kept],
        [list(row["answers"]["answer_start"]) for row in kept],
    )


def _refuse_unanswerable(splits: Mapping[str, Questions]) -> None:
    for split, rows in splits.items():
        if [] in rows.answers:
            raise SettingError(
                f"task=squad: row {rows.answers.index([]) + 1} of {split} has no answer; valid: task=squad_v2 for such data"
            )
