"""E2E NLG (Novikova et al. 2017, arXiv 1706.09254): turn a restaurant's attributes into a sentence about it."""

from pathlib import Path
from typing import Literal

from adarank.harness.data.tasks.base import Prompts, Task
from adarank.harness.data.tasks.prompts import assemble, carved, grouped
from adarank.harness.data.tasks.readers import comma_separated, folder_with
from adarank.harness.data.tasks.rows import pick_columns

FILES = {"train": "trainset.csv", "dev": "devset.csv", "test": "testset_w_refs.csv"}
DEV_ROWS = 100  # meaning representations in a dev set that is taken from devset.csv


def e2e(
    path: str,
    metric: Literal["loss", "bleu", "rougeL", "meteor", "cider"] = "loss",
    limit: int | None = None,
    max_tokens: int = 256,
    max_new_tokens: int = 96,
    generate_rows: int | None = None,
) -> Task:
    """The challenge's CSV files in a folder, or in its E2E/. Every meaning representation has several references.

    Without trainset.csv, devset.csv is split into train and dev by whole meaning representations. The prompt is the
    unchanged representation and a line break. The metrics are the challenge's own except NIST. Raises SettingError.
    """
    where = folder_with(path, FILES["dev"], owner="the E2E challenge's ", inside="E2E")
    splits = {split: _read(where / file, path) for split, file in FILES.items() if (where / file).is_file()}
    if "train" not in splits:
        splits["dev"], splits["train"] = carved(splits["dev"], DEV_ROWS)
    splits = {split: splits[split] for split in FILES if split in splits}
    metrics = ("bleu", "rougeL", "meteor", "cider")
    return assemble("e2e", splits, metrics, metric, limit, max_tokens, max_new_tokens, generate_rows)


def _read(file: Path, path: str) -> Prompts:
    source = f"{file.name} (task.path={path})"
    columns = pick_columns(source, comma_separated(file, source), {"mr": "mr", "ref": "ref"})
    return grouped(source, [f"{mr}\n" if mr.strip() else "" for mr in columns["mr"]], columns["ref"])
