"""Training on MetaMathQA (Yu et al. 2023, arXiv 2309.12284) and evaluation on GSM8K, as in PEFT's method comparison
(huggingface/peft, method_comparison/MetaMathQA)."""

import json
from collections.abc import Mapping
from typing import Any, Literal

from adarank.errors import SettingError
from adarank.harness.data.tasks.base import Prompts, Task
from adarank.harness.data.tasks.gsm8k import gsm8k, questions
from adarank.harness.data.tasks.hub import read_hub
from adarank.harness.data.tasks.prompts import assemble, grouped
from adarank.harness.data.tasks.readers import folder_with
from adarank.harness.data.tasks.rows import pick_columns

REPOSITORY = ("meta-math/MetaMathQA", None, "aa4f34d3d2d3231299b5b03d9b3e5a20da45aa18")  # JSON, no script
FILE = "MetaMathQA-395K.json"
MAX_CHARACTERS = 1300  # of query and response; PEFT's limit, which keeps 94 % of the rows


def metamathqa(
    path: str | None = None,
    metric: Literal["loss", "final_answer"] = "loss",
    limit: int | None = None,
    max_tokens: int = 768,
    max_new_tokens: int = 300,
    generate_rows: int | None = None,
) -> Task:
    """Train: MetaMathQA's rows of at most 1,300 characters; dev and test: those of task=gsm8k, 500 and 1,319 problems.

    path: a folder with MetaMathQA-395K.json and GSM8K's files, in it or in its GSM8K/; None: the hub. final_answer
    compares the numbers after "The answer is:" or "####". Differences from PEFT's suite: its prompt adds "Think step by
    step.", and its dev set has 50 problems that are always answered (ours are only with task.metric=final_answer).
    Raises SettingError.
    """
    if path is None:
        files = f"{FILE}, train.jsonl and test.jsonl"
        source, rows = read_hub(REPOSITORY, {"train": "train"}, "metamathqa", files)["train"]
        train = _prompts(source, {name: rows[name] for name in ("query", "response")})
    else:
        train = _local(path)
    evaluated = gsm8k(path, limit=limit)
    splits = {"train": train, "dev": evaluated.dev, "test": evaluated.test}
    return assemble("metamathqa", splits, ("final_answer",), metric, limit, max_tokens, max_new_tokens, generate_rows)


def _local(path: str) -> Prompts:
    file, source = folder_with(path, FILE) / FILE, f"{FILE} (task.path={path})"
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        columns = {name: [row[name] for row in rows] for name in ("query", "response")}
    except (ValueError, KeyError, TypeError) as error:
        raise SettingError(
            f"{source} must be a list of rows with query and response ({type(error).__name__}: {error})"
        ) from None
    return _prompts(source, columns)


def _prompts(source: str, columns: Mapping[str, Any]) -> Prompts:
    picked = pick_columns(source, columns, {"query": "query", "response": "response"})
    pairs = zip(picked["query"], picked["response"], strict=True)
    kept = [(query, response) for query, response in pairs if len(f"{query} {response}") <= MAX_CHARACTERS]
    return questions(grouped(source, [query for query, _ in kept], [response for _, response in kept]))
