"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168): grade-school maths word problems, solved step by step."""

from typing import Literal

from adarank.harness.data.tasks.base import Prompts, Task
from adarank.harness.data.tasks.hub import columns, read_hub
from adarank.harness.data.tasks.prompts import assemble, carved, grouped
from adarank.harness.data.tasks.readers import Columns, folder_with, json_lines
from adarank.harness.data.tasks.rows import pick_columns

REPOSITORY = ("openai/gsm8k", "main", "cc7b047b6e5bb11b4f1af84efc572db110a51b3c")  # Parquet, no script
DEV_ROWS = 500


def gsm8k(
    path: str | None = None,
    metric: Literal["loss", "answer_match"] = "loss",
    limit: int | None = None,
    max_tokens: int = 512,
    max_new_tokens: int = 256,
    generate_rows: int | None = None,
) -> Task:
    """6,973 / 500 / 1,319 problems; dev is taken from the original 7,473 training problems.

    path: the folder with train.jsonl and test.jsonl, or with a subfolder GSM8K/ that contains them; None: the hub.
    answer_match compares the numbers after the last ####. Raises SettingError.
    """
    if path is None:
        data = read_hub(REPOSITORY, {"train": "train", "test": "test"}, "gsm8k", "train.jsonl and test.jsonl")
        read = {split: columns(rows) for split, (_, rows) in data.items()}
    else:
        where = folder_with(path, "train.jsonl", "test.jsonl", owner="GSM8K's ", inside="GSM8K")
        read = {s: json_lines(where / f"{s}.jsonl", f"{s}.jsonl (task.path={path})") for s in ("train", "test")}
    train, test = (_prompts(f"{split} of gsm8k", read[split]) for split in ("train", "test"))
    dev, train = carved(train, DEV_ROWS)
    splits = {"train": train, "dev": dev, "test": test}
    return assemble("gsm8k", splits, ("answer_match",), metric, limit, max_tokens, max_new_tokens, generate_rows)


def _prompts(source: str, columns: Columns) -> Prompts:
    picked = pick_columns(source, columns, {"question": "question", "answer": "answer"})
    return questions(grouped(source, picked["question"], picked["answer"]))


def questions(rows: Prompts) -> Prompts:
    """The rows in the form "Question: …\\nAnswer:", " …"."""
    prompts = [f"Question: {question}\nAnswer:" for question in rows.prompt]
    return Prompts(prompts, [[f" {answer}" for answer in answers] for answers in rows.references])
