"""The commonsense tasks of LLM-Adapters (Hu et al. 2023, arXiv 2304.01933): multiple choice as instructions."""

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Literal

from adarank.errors import SettingError
from adarank.harness.data.metrics.texts import CHOICES, chosen
from adarank.harness.data.tasks.base import Prompts, Task
from adarank.harness.data.tasks.prompts import alpaca, assemble, check_texts, grouped, with_dev
from adarank.harness.data.tasks.readers import folder, holds, json_array
from adarank.harness.data.tasks.rows import missing, pick_columns

DEV_ROWS = 120  # of each task, but at most a tenth of its prompts; the suite's own val_set_size
PREAMBLE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
PREAMBLE_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request."
)


def commonsense(
    path: str,
    names: list[str] | str | None = None,
    metric: Literal["loss", "accuracy"] = "loss",
    limit: int | None = None,
    max_tokens: int = 512,
    max_new_tokens: int = 32,
    generate_rows: int | None = None,
) -> Task:
    """The suite's files, NAME/train.json and NAME/test.json, in the folder `path` or in its commonsense/.

    names: one or more of boolq, piqa, social_i_qa, hellaswag, winogrande, ARC-Easy, ARC-Challenge and openbookqa; None:
    all whose folders exist. Several tasks are trained together. dev is taken from each task's train. limit,
    generate_rows: rows of a split, spread evenly over the tasks. The suite's own rule extracts the answer from the text
    (`CHOICES`); `accuracy` is the mean over the tasks, and `accuracy_NAME` is that of one task.

    Differences from the suite's script: only the response counts in the loss, the prompt has no indentation, answers
    are decoded greedily instead of with four beams, and they are lower-cased before the rule is applied. Raises
    SettingError, naming file and row.
    """
    where = folder(path)
    where = where / "commonsense" if (where / "commonsense").is_dir() else where
    tasks = _chosen(path, where, [names] if isinstance(names, str) else names)
    for setting, value in (("limit", limit), ("generate_rows", generate_rows)):
        if value is not None and value < len(tasks):
            raise SettingError(f"task.{setting} must be at least {len(tasks)}, one row per task (got {value})")
    parts = [_part(where / task, task, path) for task in tasks]
    splits = {split: _in_turn([part[split] for part in parts]) for split in ("train", "dev", "test")}
    title = "commonsense" if names is None else "+".join(tasks)
    metrics = ("accuracy", *(f"accuracy_{task}" for task in tasks))
    return assemble(title, splits, metrics, metric, limit, max_tokens, max_new_tokens, generate_rows)


def _chosen(path: str, where: Path, names: Sequence[str] | None) -> list[str]:
    """The tasks in the suite's order."""
    there = [task for task in CHOICES if (where / task).is_dir()]
    if not there:
        raise SettingError(f"task.path must hold a folder of {', '.join(CHOICES)} ({path}: {holds(where)})")
    if names is None:
        return there
    if not names or len(set(names)) < len(names) or not set(names) <= set(there):
        raise SettingError(
            f"task.names must be one or more different names from {', '.join(there)}, whose folders are in task.path "
            f"(got {', '.join(map(str, names)) or 'none'})"
        )
    return [task for task in CHOICES if task in names]


def _part(where: Path, task: str, path: str) -> dict[str, Prompts]:
    """train, dev and test of one task. Equal prompts are merged in train and dev; every row of test is answered."""
    read = {}
    for split in ("train", "test"):
        source = f"{task}/{split}.json (task.path={path})"
        if not (where / f"{split}.json").is_file():
            raise SettingError(f"task.path must hold {task}/{split}.json ({path}: in {task} {holds(where)})")
        read[split] = _rows(where / f"{split}.json", source, task)
    check_texts(*read["test"])
    _, prompts, responses = read["test"]
    test = Prompts(prompts, [[response] for response in responses])
    splits = with_dev({"train": grouped(*read["train"])}, DEV_ROWS) | {"test": test}
    return {split: Prompts(rows.prompt, rows.references, part=[task] * len(rows)) for split, rows in splits.items()}


def _rows(file: Path, source: str, task: str) -> tuple[str, list[str], list[str]]:
    """(source, prompts, responses). Raises SettingError for a response that does not contain the row's answer."""
    table = json_array(file, source)
    picked = pick_columns(source, table, {name: name for name in ("instruction", "output", "answer")})
    inputs = table.get("input", [None] * len(picked["instruction"]))
    for row, (response, answer) in enumerate(zip(picked["output"], picked["answer"], strict=True), 1):
        if isinstance(response, str) and response.strip() and chosen(task, response) != answer:
            raise SettingError(
                f"{source}: the output of row {row} must state the answer {answer!r:.40}, found by the first match of "
                f"{CHOICES[task]} (got {response!r:.60})"
            )
    prompts = [
        _prompt(text, None if missing(given) else given) if isinstance(text, str) and not missing(text) else text
        for text, given in zip(picked["instruction"], inputs, strict=True)
    ]
    return source, prompts, picked["output"]


def _prompt(instruction: str, given: str | None) -> str:
    return f"{PREAMBLE if given is None else PREAMBLE_WITH_INPUT}\n\n{alpaca(instruction, given)}"


def _in_turn(parts: Sequence[Prompts]) -> Prompts:
    """The first row of every part, then the second of every part that has one, and so on."""
    at = [[(part, row) for row in range(len(part))] for part in parts]
    order = [place for places in zip_longest(*at) for place in places if place is not None]
    return Prompts(
        [part.prompt[row] for part, row in order],
        [part.references[row] for part, row in order],
        part=[part.part[row] for part, row in order if part.part is not None],
    )
