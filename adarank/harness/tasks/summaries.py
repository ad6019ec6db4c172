"""News and their summaries: XSum and CNN/DailyMail, or one's own, from a folder or from the hub."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from adarank.errors import SettingError
from adarank.harness.tasks.base import Prompts, Task
from adarank.harness.tasks.files import no_file, read_split
from adarank.harness.tasks.hub import download
from adarank.harness.tasks.prompts import Pairs, assemble, grouped, pick
from adarank.harness.tasks.readers import folder

SPLITS = {"train": "train", "dev": "validation", "test": "test"}
# Without a script: XSum's own repository has one, so that its Parquet branch is read.
HUB = {
    "xsum": ("EdinburghNLP/xsum", None, "refs/convert/parquet"),
    "cnn_dailymail": ("abisee/cnn_dailymail", "3.0.0", "96df5e686bee6baa90b8bee7c28b81fa3fa6223d"),
}


def summaries(
    name: Literal["xsum", "cnn_dailymail"],
    path: str | None = None,
    text: str = "document",
    summary: str = "summary",
    prefix: str = "",
    metric: Literal["loss", "rouge1", "rouge2", "rougeL", "rougeLsum"] = "loss",
    limit: int | None = None,
    max_tokens: int = 768,
    max_new_tokens: int = 64,
    beams: int = 4,
    generate_rows: int | None = None,
) -> Task:
    """XSum (Narayan et al. 2018, arXiv 1808.08745) or CNN/DailyMail (Hermann et al. 2015, arXiv 1506.03340; version 3.0.0).

    path: a folder with train, dev and, if there is one, test, in any format of task=files; None: the hub. text, summary:
    columns; prefix: before every text (T5: "summarize: "); max_tokens: of a text; max_new_tokens: of a summary, in training,
    too; beams: 1 is greedy. Raises SettingError.
    """
    if beams < 1:
        raise SettingError(f"task.beams={beams} decodes nothing; valid: at least 1 (greedy)")
    read = _files(path) if path is not None else _hub(name)
    columns = {"task.text": text, "task.summary": summary}
    splits = {split: _prompts(source, table, columns, prefix) for split, (source, table) in read.items()}
    task = assemble(
        name,
        splits,
        metrics=("rouge1", "rouge2", "rougeL", "rougeLsum"),
        metric=metric,
        limit=limit,
        max_tokens=max_tokens,
        max_new_tokens=max_new_tokens,
        generate_rows=generate_rows,
    )
    return replace(task, kind="seq2seq", options={**task.options, "beams": beams})


def _files(path: str) -> dict[str, tuple[str, Mapping[str, Any]]]:
    where = folder(path)
    found = {split: read_split(where, split, path) for split in SPLITS}
    for split in ("train", "dev"):
        if found[split] is None:
            raise no_file(where, split, path)
    return {split: read for split, read in found.items() if read is not None}


def _hub(name: str) -> dict[str, tuple[str, Mapping[str, Any]]]:
    what = f"task={name} without task.path: {HUB[name][0]}"
    found = download(*HUB[name], what, "task.path=FOLDER with train and dev, say as train.jsonl and dev.jsonl")
    return {
        role: (f"split {split} ({what})", {column: found[split][column] for column in found[split].column_names})
        for role, split in SPLITS.items()
    }


def _prompts(source: str, table: Mapping[str, Any], columns: Mapping[str, str], prefix: str) -> Prompts:
    found = pick(source, table, columns)
    rows = grouped(Pairs(source, found["task.text"], found["task.summary"]))
    return Prompts([f"{prefix}{text}" for text in rows.prompt], rows.references)
