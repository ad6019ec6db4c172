"""Instructions and their responses, from one's own files or the hub."""

from collections.abc import Mapping
from typing import Literal

from adarank.errors import SettingError
from adarank.harness.complaints import near
from adarank.harness.tasks.base import Prompts, Task
from adarank.harness.tasks.files import no_file, read_split
from adarank.harness.tasks.hub import download
from adarank.harness.tasks.prompts import Pairs, assemble, carved, grouped, pick
from adarank.harness.tasks.readers import Columns, folder
from adarank.harness.tasks.rows import missing

HELD_OUT = 500  # prompts of a carved dev, at most a tenth


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
    """Prompts and responses: of the folder `path` (train and, where they are, dev and test, in any format of task=files),
    or of the hub's `name` (train, dev, test: its splits). Without dev it is carved from train.

    prompt, response: columns. None: `prompt` and `response`, or else `instruction`, `input` (which may lack) and `output`,
    put together as Alpaca does (Taori et al. 2023), without its preamble. Raises SettingError, naming file and row.
    """
    if (path is None) == (name is None):
        raise SettingError("task=instruct reads one of two: task.path=FOLDER, or task.name=NAME of the hub; give one")
    if path is not None:
        read, title = _files(path), folder(path).resolve().name
    else:
        read, title = _hub(str(name), config, revision, {"train": train, "dev": dev, "test": test}), str(name)
    splits = {split: _prompts(source, columns, prompt, response) for split, (source, columns) in read.items()}
    if "dev" not in splits:
        held_out = min(HELD_OUT, max(1, len(splits["train"]) // 10))
        splits["dev"], splits["train"] = carved(splits["train"], held_out)
    return assemble(
        title,
        splits,
        metrics=("bleu", "rouge1", "rouge2", "rougeL", "exact_match"),
        metric=metric,
        limit=limit,
        max_tokens=max_tokens,
        max_new_tokens=max_new_tokens,
        generate_rows=generate_rows,
    )


def _files(path: str) -> dict[str, tuple[str, Columns]]:
    where = folder(path)
    found = {split: read_split(where, split, path) for split in ("train", "dev", "test")}
    if found["train"] is None:
        raise no_file(where, "train", path)
    return {split: read for split, read in found.items() if read is not None}


def _hub(
    name: str, config: str | None, revision: str | None, splits: Mapping[str, str | None]
) -> dict[str, tuple[str, Columns]]:
    what = f"task.name={name}"
    found = download(name, config, revision, what, "a data set's name and a reachable hub, or task.path=FOLDER")
    for role, split in splits.items():
        if split is not None and split not in found:
            raise SettingError(f"task.{role}={split}: {what} has no split {split}; {near(split, found)}")
    named = {role: split for role, split in splits.items() if split is not None}
    return {
        role: (f"split {split} ({what})", {column: list(found[split][column]) for column in found[split].column_names})
        for role, split in named.items()
    }


def _prompts(source: str, columns: Columns, prompt: str | None, response: str | None) -> Prompts:
    if prompt is None and response is None and "prompt" not in columns and "instruction" in columns:
        return _alpaca(source, columns)
    wanted = {"task.prompt": prompt or "prompt", "task.response": response or "response"}
    found = pick(source, columns, wanted)
    rows = grouped(Pairs(source, found["task.prompt"], found["task.response"]))
    return Prompts([f"{text}\n" for text in rows.prompt], rows.references)


def _alpaca(source: str, columns: Columns) -> Prompts:
    found = pick(source, columns, {"task.prompt": "instruction", "task.response": "output"})
    inputs = columns.get("input", [None] * len(found["task.prompt"]))
    asked = [
        text if missing(text) else _template(text, None if missing(given) else given)
        for text, given in zip(found["task.prompt"], inputs, strict=True)
    ]
    return grouped(Pairs(source, asked, found["task.response"]))


def _template(instruction: str, given: str | None) -> str:
    parts = [
        f"### Instruction:\n{instruction}",
        *([] if given is None else [f"### Input:\n{given}"]),
        "### Response:\n",
    ]
    return "\n\n".join(parts)
