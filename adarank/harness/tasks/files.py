"""A task from one's own files."""

from pathlib import Path

from adarank.errors import SettingError
from adarank.harness.tasks.base import Task
from adarank.harness.tasks.readers import READERS, Columns, folder, holds
from adarank.harness.tasks.rows import Table, assemble, check_metric, check_sizes, pick


def files(
    path: str,
    text: str = "text",
    pair: str | None = None,
    label: str = "label",
    metric: str | None = None,
    limit: int | None = None,
    max_length: int = 128,
) -> Task:
    """A folder with train, dev and, optionally, test as .csv, .tsv, .jsonl or .parquet, named columns in each.

    CSV is quoted, TSV is not; both in UTF-8 with a header. text, pair, label: the columns' names. Labels that are words
    or whole numbers are classes, numbers with a fraction are targets of a regression. metric: one of
    `metrics.known()`; None: accuracy, or pearson_spearman. Raises SettingError, naming file and row.
    """
    check_metric(metric)
    check_sizes(limit, max_length)
    where = folder(path)
    tables = {split: _table(where, split, path, text, pair, label) for split in ("train", "dev", "test")}
    train, dev = tables["train"], tables["dev"]
    if train is None or dev is None:
        raise no_file(where, "train" if train is None else "dev", path)
    name = where.resolve().name
    return assemble(name, train, dev, tables["test"], metric=metric, limit=limit, max_length=max_length)


def _table(where: Path, split: str, path: str, text: str, pair: str | None, label: str) -> Table | None:
    found = read_split(where, split, path)
    return None if found is None else pick(*found, text, pair, label)


def read_split(where: Path, split: str, path: str) -> tuple[str, Columns] | None:
    """(what messages call it, columns) of the one file in `where` that is called `split`; None where there is none."""
    found = sorted(p for p in where.iterdir() if p.stem == split and p.suffix.lower() in READERS and p.is_file())
    if not found:
        return None
    if len(found) > 1:
        names = ", ".join(p.name for p in found)
        raise SettingError(f"task.path={path} has several files for {split}: {names}; valid: one a split")
    source = f"{found[0].name} (task.path={path})"
    return source, READERS[found[0].suffix.lower()](found[0], source)


def no_file(where: Path, split: str, path: str) -> SettingError:
    names = " or ".join(f"{split}{suffix}" for suffix in READERS)
    return SettingError(f"task.path={path} has no {split} file; valid: {names} ({holds(where)})")
