"""MetaMathQA (Yu et al. 2023, arXiv 2309.12284) to train on, GSM8K to be judged by: the task of PEFT's method comparison
(huggingface/peft, method_comparison/MetaMathQA)."""

import json
from collections.abc import Mapping
from typing import Any, Literal

from adarank.errors import SettingError
from adarank.harness.tasks.base import Prompts, Task
from adarank.harness.tasks.gsm8k import gsm8k
from adarank.harness.tasks.hub import download
from adarank.harness.tasks.prompts import Pairs, assemble, grouped, pick
from adarank.harness.tasks.readers import folder, holds

REPOSITORY = ("meta-math/MetaMathQA", None, "aa4f34d3d2d3231299b5b03d9b3e5a20da45aa18")  # JSON, no script
FILE = "MetaMathQA-395K.json"
LONGEST = 1300  # characters of query and response, PEFT's limit: 94 % of the rows


def metamathqa(
    path: str | None = None,
    metric: Literal["loss", "final_answer"] = "loss",
    limit: int | None = None,
    max_tokens: int = 768,
    max_new_tokens: int = 300,
    generate_rows: int | None = None,
) -> Task:
    """Train: MetaMathQA's rows of at most 1,300 characters; dev and test: those of task=gsm8k, 500 and 1,319 problems.

    path: a folder with MetaMathQA-395K.json and GSM8K's files, there or in GSM8K/; None: the hub. final_answer compares
    the numbers behind "The answer is:" or "####". Differs from PEFT's suite: its prompt adds "Think step by step.", its dev
    has 50 problems and is answered (task.metric=final_answer answers ours). Raises SettingError.
    """
    train = _local(path) if path is not None else _hub()
    judged = gsm8k(path, limit=limit)
    return assemble(
        "metamathqa",
        {"train": train, "dev": judged.dev, "test": judged.test},
        metrics=("final_answer",),
        metric=metric,
        limit=limit,
        max_tokens=max_tokens,
        max_new_tokens=max_new_tokens,
        generate_rows=generate_rows,
    )


def _local(path: str) -> Prompts:
    where = folder(path)
    file = where / FILE
    if not file.is_file():
        raise SettingError(f"task.path={path} has no {FILE}; valid: MetaMathQA's own file ({holds(where)})")
    source = f"{FILE} (task.path={path})"
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        columns = {name: [row[name] for row in rows] for name in ("query", "response")}
    except (ValueError, KeyError, TypeError) as error:
        raise SettingError(
            f"{source} is not a list of rows with query and response ({type(error).__name__}: {error}); valid: the official file"
        ) from None
    return _prompts(source, columns)


def _hub() -> Prompts:
    what = f"task=metamathqa without task.path: {REPOSITORY[0]}"
    rows = download(*REPOSITORY, what, f"task.path=FOLDER with {FILE}, train.jsonl and test.jsonl")["train"]
    return _prompts(f"split train ({what})", {name: rows[name] for name in ("query", "response")})


def _prompts(source: str, columns: Mapping[str, Any]) -> Prompts:
    found = pick(source, columns, {"query": "query", "response": "response"})
    pairs = zip(found["query"], found["response"], strict=True)
    kept = [(query, response) for query, response in pairs if len(f"{query} {response}") <= LONGEST]
    rows = grouped(Pairs(source, [query for query, _ in kept], [response for _, response in kept]))
    asked = [f"Question: {query}\nAnswer:" for query in rows.prompt]
    return Prompts(asked, [[f" {response}" for response in own] for own in rows.references])
