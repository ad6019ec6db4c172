"""The nine tasks of GLUE (Wang et al. 2019, arXiv 1804.07461), from a local folder or from the hub."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from adarank.errors import SettingError
from adarank.harness.tasks.base import Task
from adarank.harness.tasks.glue_layouts import SOURCES, Layout, Source
from adarank.harness.tasks.hub import download, from_splits
from adarank.harness.tasks.readers import Columns, delimited, folder, holds
from adarank.harness.tasks.rows import Table, assemble, check_sizes, pick, require_rows

REPOSITORY = ("nyu-mll/glue", "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c")  # Parquet, no script


def glue(
    name: Literal["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "stsb", "sst2", "wnli"],
    path: str | None = None,
    limit: int | None = None,
    max_length: int = 128,
) -> Task:
    """A GLUE task with its own metrics; the first is reported.

    MNLI's dev is the matched one; the mismatched one is its test: measured once, with the checkpoint that is best on the
    matched. path: the folder that holds CoLA, MNLI, MRPC, …, or the task's own folder, in GLUE's layout (as downloaded)
    or in that of the repositories it came from; None: the hub. The files are read without quoting, as GLUE writes them.
    Raises SettingError saying what was looked for.
    """
    check_sizes(limit, max_length)
    source = SOURCES[name]
    if path is not None:
        tables = _tables(source, path)
        return assemble(name, *tables, metric=source.metrics, limit=limit, max_length=max_length)
    repository, revision = REPOSITORY
    what = f"task={name} without task.path: {repository} (config {name})"
    return from_splits(
        name,
        download(repository, name, revision, what, f"task.path=FOLDER with {_wanted(source)}"),
        what,
        columns=source.hub_columns,
        splits={"train": "train", "dev": source.hub_dev, "test": source.hub_test},
        metric=source.metrics,
        limit=limit,
        max_length=max_length,
    )


def _wanted(source: Source) -> str:
    ways = [" and ".join(f"{source.folder}/{file}" for file in (w.train, *w.dev)) for w in source.layouts]
    return ", or ".join(ways)


def _tables(source: Source, path: str) -> tuple[Table, Table, Table | None]:
    where = folder(path)
    for place in (where / source.folder, where):
        for layout in source.layouts:
            if all((place / file).is_file() for file in (layout.train, *layout.dev)):
                train, dev = (_table(place, names, layout, path) for names in ((layout.train,), layout.dev))
                train = replace(train, order=source.order)
                return train, dev, _test(place, layout, path)
    seen = where / source.folder if (where / source.folder).is_dir() else where
    raise SettingError(
        f"task.path={path} holds no {source.folder}; valid: {_wanted(source)} ({seen.name}: {holds(seen)})"
    )


def _table(place: Path, files: tuple[str, ...], layout: Layout, path: str) -> Table:
    """The rows of all files, one after the other."""
    columns = (layout.text, layout.pair, layout.label)
    parts = []
    for file in files:
        part = _columns(place / file, layout, path)
        absent = [name for name in columns if name is not None and name not in part]
        if absent:
            raise SettingError(
                f"{_source(file, path)} has no {absent[0]}; valid: {' and '.join(filter(None, columns))}"
            )
        parts.append(part)
    joined = {name: [value for part in parts for value in part[name]] for name in columns if name is not None}
    return pick(_source(" + ".join(files), path), joined, *columns)


def _test(place: Path, layout: Layout, path: str) -> Table | None:
    if layout.test is None or not (place / layout.test).is_file():
        return None
    labelled = layout.label in _columns(place / layout.test, layout, path)
    return _table(place, (layout.test,), layout, path) if labelled else None


def _columns(file: Path, layout: Layout, path: str) -> Columns:
    header = not layout.text.startswith("column ")
    columns = delimited(file, _source(file.name, path), "\t", quoted=False, header=header, torn=layout.torn)
    require_rows(_source(file.name, path), columns)
    return columns


def _source(files: str, path: str) -> str:
    return f"{files} (task.path={path})"
