"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168): school mathematics in words, solved step by step."""

from typing import Literal

from adarank.errors import SettingError
from adarank.harness.tasks.base import Prompts, Task
from adarank.harness.tasks.hub import download
from adarank.harness.tasks.prompts import Pairs, assemble, carved, grouped, pick
from adarank.harness.tasks.readers import folder, holds, json_lines

REPOSITORY = ("openai/gsm8k", "main", "cc7b047b6e5bb11b4f1af84efc572db110a51b3c")  # Parquet, no script
HELD_OUT = 500  # problems of dev


def gsm8k(
    path: str | None = None,
    metric: Literal["loss", "answer_match"] = "loss",
    limit: int | None = None,
    max_tokens: int = 512,
    max_new_tokens: int = 256,
    generate_rows: int | None = None,
) -> Task:
    """6,973 / 500 / 1,319 problems; dev is carved from the original's 7,473 training problems.

    path: the folder with train.jsonl and test.jsonl, or with a GSM8K/ that has them; None: the hub. answer_match compares
    the number behind the last ####. Raises SettingError.
    """
    if path is None:
        what = "task=gsm8k without task.path: " + REPOSITORY[0]
        splits = download(*REPOSITORY, what, "task.path=FOLDER with train.jsonl and test.jsonl")
        read = {
            split: {name: splits[split][name] for name in splits[split].column_names} for split in ("train", "test")
        }
    else:
        where = folder(path)
        where = where / "GSM8K" if (where / "GSM8K").is_dir() else where
        for split in ("train", "test"):
            if not (where / f"{split}.jsonl").is_file():
                raise SettingError(f"task.path={path} has no {split}.jsonl; valid: GSM8K's two files ({holds(where)})")
        read = {s: json_lines(where / f"{s}.jsonl", f"{s}.jsonl (task.path={path})") for s in ("train", "test")}
    train, test = (_prompts(f"{split} of gsm8k", read[split]) for split in ("train", "test"))
    dev, train = carved(train, HELD_OUT)
    return assemble(
        "gsm8k",
        {"train": train, "dev": dev, "test": test},
        metrics=("answer_match",),
        metric=metric,
        limit=limit,
        max_tokens=max_tokens,
        max_new_tokens=max_new_tokens,
        generate_rows=generate_rows,
    )


def _prompts(source: str, columns: dict[str, list[str]]) -> Prompts:
    found = pick(source, columns, {"question": "question", "answer": "answer"})
    rows = grouped(Pairs(source, found["question"], found["answer"]))
    asked = [f"Question: {question}\nAnswer:" for question in rows.prompt]
    return Prompts(asked, [[f" {answer}" for answer in own] for own in rows.references])
