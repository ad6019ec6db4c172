"""News articles and their summaries: XSum and CNN/DailyMail, or your own, from a folder or from the hub."""

from dataclasses import replace
from typing import Literal

from adarank.errors import SettingError
from adarank.harness.data.tasks.base import Prompts, Task
from adarank.harness.data.tasks.hub import columns, read_hub
from adarank.harness.data.tasks.prompts import assemble, grouped
from adarank.harness.data.tasks.readers import Columns, read_splits
from adarank.harness.data.tasks.rows import pick_columns

SPLITS = {"train": "train", "dev": "validation", "test": "test"}
# Repositories without a script. XSum's own repository has one, so its Parquet branch is used.
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
    """XSum (Narayan et al. 2018, arXiv 1808.08745) or CNN/DailyMail (Hermann et al. 2015, arXiv 1506.03340; version
    3.0.0).

    path: a folder with train, dev and optionally test, in any format of task=files; None: the hub. text, summary: names
    of columns; prefix: prepended to every text (T5: "summarize: "); max_tokens: the limit for a text; max_new_tokens:
    the limit for a summary, also in training; beams: 1 is greedy. Raises SettingError.
    """
    if beams < 1:
        raise SettingError(f"task.beams must be at least 1, which is greedy (got {beams})")
    if path is not None:
        read = read_splits(path, required=("train", "dev"))
    else:
        data = read_hub(HUB[name], SPLITS, name, "train and dev, for example as train.jsonl and dev.jsonl")
        read = {split: (source, columns(rows)) for split, (source, rows) in data.items()}
    splits = {split: _prompts(source, table, text, summary, prefix) for split, (source, table) in read.items()}
    metrics = ("rouge1", "rouge2", "rougeL", "rougeLsum")
    task = assemble(name, splits, metrics, metric, limit, max_tokens, max_new_tokens, generate_rows)
    return replace(task, task_type="seq2seq", options={**task.options, "beams": beams})


def _prompts(source: str, table: Columns, text: str, summary: str, prefix: str) -> Prompts:
    picked = pick_columns(source, table, {"task.text": text, "task.summary": summary})
    rows = grouped(source, picked["task.text"], picked["task.summary"])
    return Prompts([f"{prefix}{text}" for text in rows.prompt], rows.references)
