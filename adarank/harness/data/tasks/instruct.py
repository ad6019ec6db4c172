"""Instructions and their responses, from your own files or the hub."""

from typing import Literal

from adarank.errors import SettingError
from adarank.harness.data.tasks.base import Prompts, Task
from adarank.harness.data.tasks.hub import columns, open_splits
from adarank.harness.data.tasks.prompts import assemble, carved, grouped
from adarank.harness.data.tasks.readers import Columns, folder, read_splits
from adarank.harness.data.tasks.rows import missing, pick_columns

DEV_ROWS = 500  # prompts of a dev set that is taken from train, but at most a tenth of them


def instruct(
    path: str | None = None,
    name: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    prompt: str | None = None,
    response: str | None = None,
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
    absent) and `output`, combined as Alpaca does (Taori et al. 2023), without its preamble. Raises SettingError, naming
    file and row.
    """
    if (path is None) == (name is None):
        raise SettingError("task=instruct needs either task.path=FOLDER or task.name=NAME, a data set of the hub")
    if path is not None:
        read, title = read_splits(path, required=("train",)), folder(path).resolve().name
    else:
        title = str(name)
        splits = {"train": train, "dev": dev, "test": test}
        use = "a data set's name with the hub in reach, or task.path=FOLDER"
        data = open_splits(title, config, revision, splits, f"task.name={name}", use)
        read = {role: (source, columns(rows)) for role, (source, rows) in data.items()}
    rows = {split: _prompts(source, table, prompt, response) for split, (source, table) in read.items()}
    if "dev" not in rows:
        count = min(DEV_ROWS, max(1, len(rows["train"]) // 10))
        rows["dev"], rows["train"] = carved(rows["train"], count)
    metrics = ("bleu", "rouge1", "rouge2", "rougeL", "exact_match")
    return assemble(title, rows, metrics, metric, limit, max_tokens, max_new_tokens, generate_rows)


def _prompts(source: str, table: Columns, prompt: str | None, response: str | None) -> Prompts:
    if prompt is None and response is None and "prompt" not in table and "instruction" in table:
        return _alpaca(source, table)
    picked = pick_columns(source, table, {"task.prompt": prompt or "prompt", "task.response": response or "response"})
    rows = grouped(source, picked["task.prompt"], picked["task.response"])
    return Prompts([f"{text}\n" for text in rows.prompt], rows.references)


def _alpaca(source: str, table: Columns) -> Prompts:
    picked = pick_columns(source, table, {"task.prompt": "instruction", "task.response": "output"})
    inputs = table.get("input", [None] * len(picked["task.prompt"]))
    pairs = zip(picked["task.prompt"], inputs, strict=True)
    prompts = []
    for text, given in pairs:
        middle = "" if missing(given) else f"### Input:\n{given}\n\n"
        prompts.append(text if missing(text) else f"### Instruction:\n{text}\n\n{middle}### Response:\n")
    return grouped(source, prompts, picked["task.response"])
