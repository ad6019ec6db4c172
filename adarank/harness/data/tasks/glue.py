"""The nine tasks of GLUE (Wang et al. 2019, arXiv 1804.07461), from a local folder or from the hub."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from adarank.errors import SettingError
from adarank.harness.data.tasks.base import Task
from adarank.harness.data.tasks.hub import from_splits, open_splits
from adarank.harness.data.tasks.readers import Columns, delimited, folder, holds
from adarank.harness.data.tasks.rows import Table, assemble, check_sizes, pick_columns, table

REPOSITORY = ("nyu-mll/glue", "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c")  # Parquet, no script


@dataclass(frozen=True)
class Layout:
    """The names of a folder's columns, which are `column N` for files without a header, and of its files.

    test: used if it exists and has labels (most of GLUE's own test files have none); torn: whether to skip rows that a
    line break inside a text has broken, as is usual for QQP.
    """

    text: str = "sentence1"
    pair: str | None = "sentence2"
    label: str = "label"
    train: str = "train.tsv"
    dev: tuple[str, ...] = ("dev.tsv",)
    test: str | None = "test.tsv"
    torn: bool = False


@dataclass(frozen=True)
class Source:
    """The location of a GLUE task in a folder and on the hub, and the metrics that GLUE reports for it.

    folder: its name in GLUE's download; layouts: the official one, then that of the source repository; order: the
    classes in the hub's order, unless it is the sorted order.
    """

    folder: str
    metrics: tuple[str, ...] = ("accuracy",)
    layouts: tuple[Layout, ...] = (Layout(),)
    hub_columns: tuple[str, str | None, str] = ("sentence1", "sentence2", "label")
    hub_dev: str = "validation"
    hub_test: str | None = None
    order: tuple[str, ...] | None = None


_COLA = Layout("column 4", None, "column 2", test=None)
_COLA_SOURCE = replace(_COLA, train="in_domain_train.tsv", dev=("in_domain_dev.tsv", "out_of_domain_dev.tsv"))
_MNLI = Layout(label="gold_label", dev=("dev_matched.tsv",), test="dev_mismatched.tsv")
_MRPC = Layout("#1 String", "#2 String", "Quality", test="msr_paraphrase_test.txt")
_MRPC_SOURCE = replace(_MRPC, train="msr-para-train.tsv", dev=("msr-para-val.tsv",), test="msr-para-test.tsv")
_STSB_SOURCE = Layout("column 6", "column 7", "column 5", "sts-train.csv", ("sts-dev.csv",), "sts-test.csv")
SOURCES = {
    "cola": Source("CoLA", ("matthews", "accuracy"), (_COLA, _COLA_SOURCE), ("sentence", None, "label")),
    "mnli": Source(
        "MNLI",
        layouts=(_MNLI,),
        hub_columns=("premise", "hypothesis", "label"),
        hub_dev="validation_matched",
        hub_test="validation_mismatched",
        order=("entailment", "neutral", "contradiction"),
    ),
    "mrpc": Source("MRPC", ("accuracy", "f1"), (_MRPC, _MRPC_SOURCE), hub_test="test"),
    "qnli": Source("QNLI", layouts=(Layout("question", "sentence"),), hub_columns=("question", "sentence", "label")),
    "qqp": Source(
        "QQP",
        ("accuracy", "f1"),
        (Layout("question1", "question2", "is_duplicate", torn=True),),
        ("question1", "question2", "label"),
    ),
    "rte": Source("RTE"),
    "stsb": Source("STS-B", ("pearson_spearman", "pearson", "spearman"), (Layout(label="score"), _STSB_SOURCE)),
    "sst2": Source("SST-2", layouts=(Layout("sentence", None),), hub_columns=("sentence", None, "label")),
    "wnli": Source("WNLI"),
}


def glue(
    name: Literal["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "stsb", "sst2", "wnli"],
    path: str | None = None,
    limit: int | None = None,
    max_length: int = 128,
) -> Task:
    """A GLUE task with its own metrics, the first of which is reported.

    MNLI's dev set is the matched one; the mismatched one is its test set, measured once with the checkpoint that is
    best on the matched one. path: the folder with CoLA, MNLI, MRPC, …, or the task's own folder, in GLUE's layout (as
    downloaded) or in that of the source repositories; None: the hub. The files are read without quoting, as GLUE writes
    them. Raises SettingError, naming the required files.
    """
    check_sizes(limit, max_length)
    source = SOURCES[name]
    if path is not None:
        tables = _tables(source, path)
        return assemble(name, *tables, metric=source.metrics, limit=limit, max_length=max_length)
    repository, revision = REPOSITORY
    what = f"task={name} without task.path: {repository} (config {name})"
    splits = {"train": "train", "dev": source.hub_dev, "test": source.hub_test}
    data = open_splits(repository, name, revision, splits, what, f"task.path=FOLDER with {_file_names(source)}")
    return from_splits(name, data, source.hub_columns, metric=source.metrics, limit=limit, max_length=max_length)


def _file_names(source: Source) -> str:
    return ", or ".join(" and ".join(f"{source.folder}/{file}" for file in (x.train, *x.dev)) for x in source.layouts)


def _tables(source: Source, path: str) -> tuple[Table, Table, Table | None]:
    where = folder(path)
    for place in (where / source.folder, where):
        for layout in source.layouts:
            if all((place / file).is_file() for file in (layout.train, *layout.dev)):
                read = [_read(place, files, layout, path) for files in ((layout.train,), layout.dev)]
                if layout.test is not None and (place / layout.test).is_file():
                    test = _read(place, (layout.test,), layout, path)
                    read += [test] if layout.label in test[1] else []
                train, dev, *tested = (_table(*each, layout) for each in read)
                return replace(train, order=source.order), dev, tested[0] if tested else None
    seen = where / source.folder if (where / source.folder).is_dir() else where
    raise SettingError(
        f"task.path={path} holds no {source.folder}; it must hold {_file_names(source)} ({seen.name}: {holds(seen)})"
    )


def _read(place: Path, files: tuple[str, ...], layout: Layout, path: str) -> tuple[str, Columns]:
    """(the files' name in messages, the columns of all files, concatenated)."""
    header = not layout.text.startswith("column ")
    parts = [
        delimited(place / file, f"{file} (task.path={path})", "\t", quoted=False, header=header, torn=layout.torn)
        for file in files
    ]
    shared = [name for name in parts[0] if all(name in part for part in parts)]
    columns = {name: [value for part in parts for value in part[name]] for name in shared}
    return f"{' + '.join(files)} (task.path={path})", columns


def _table(source: str, columns: Columns, layout: Layout) -> Table:
    names = [name for name in (layout.text, layout.pair, layout.label) if name is not None]
    picked = pick_columns(source, columns, {name: name for name in names})
    return table(source, picked, layout.text, layout.pair, layout.label)
