"""E2E NLG (Novikova et al. 2017, arXiv 1706.09254): restaurants' attributes to a sentence about them."""

from pathlib import Path
from typing import Literal

from adarank.errors import SettingError
from adarank.harness.tasks.base import Prompts, Task
from adarank.harness.tasks.prompts import Pairs, assemble, carved, grouped
from adarank.harness.tasks.readers import comma_separated, folder, holds

FILES = {"train": "trainset.csv", "dev": "devset.csv", "test": "testset_w_refs.csv"}
HELD_OUT = 100  # meaning representations, where dev has to be carved


def e2e(
    path: str,
    metric: Literal["loss", "bleu", "rougeL", "meteor", "cider"] = "loss",
    limit: int | None = None,
    max_tokens: int = 256,
    max_new_tokens: int = 96,
    generate_rows: int | None = None,
) -> Task:
    """The challenge's CSV files in a folder, or in its E2E/; every meaning representation is one prompt with several
    references.

    Without trainset.csv, train and dev are carved from devset.csv by whole meaning representation. The prompt is the
    representation as written and a line break; the metrics are the challenge's own but for NIST. Raises SettingError.
    """
    where = folder(path)
    where = where / "E2E" if (where / "E2E").is_dir() else where
    if not (where / FILES["dev"]).is_file():
        raise SettingError(f"task.path={path} has no devset.csv; valid: the E2E challenge's files ({holds(where)})")
    found = {split: _read(where / file, path) for split, file in FILES.items() if (where / file).is_file()}
    if "train" not in found:
        found["dev"], found["train"] = carved(found["dev"], HELD_OUT)
    return assemble(
        "e2e",
        {split: found[split] for split in FILES if split in found},
        metrics=("bleu", "rougeL", "meteor", "cider"),
        metric=metric,
        limit=limit,
        max_tokens=max_tokens,
        max_new_tokens=max_new_tokens,
        generate_rows=generate_rows,
    )


def _read(file: Path, path: str) -> Prompts:
    source = f"{file.name} (task.path={path})"
    columns = comma_separated(file, source)
    for name in ("mr", "ref"):
        if name not in columns:
            raise SettingError(f"{source} has no column {name}; valid: mr and ref (its columns: {', '.join(columns)})")
    return grouped(Pairs(source, [f"{mr}\n" if mr.strip() else "" for mr in columns["mr"]], columns["ref"]))
