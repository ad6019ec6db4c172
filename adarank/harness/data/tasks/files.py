"""A task from your own files."""

from adarank.harness.data.tasks.base import Task
from adarank.harness.data.tasks.readers import folder, read_splits
from adarank.harness.data.tasks.rows import assemble, check_metric, check_sizes, missing, table


def files(
    path: str,
    text: str = "text",
    pair: str | None = None,
    label: str = "label",
    metric: str | None = None,
    limit: int | None = None,
    max_length: int = 128,
) -> Task:
    """A folder with train, dev and, optionally, test as .csv, .tsv, .jsonl, .json (these also as .gz) or .parquet, each
    with named columns.

    CSV is quoted, TSV is not; both are UTF-8 with a header. text, pair, label: names of columns. Labels that are words
    or whole numbers are classes; numbers with a fraction are regression targets. A test set whose label column is
    missing or empty is predicted but not scored. metric: a metric for labels, of which pearson, spearman and
    pearson_spearman make all numbers targets; None: accuracy, or pearson_spearman for regression. Raises SettingError,
    naming file and row.
    """
    check_metric(metric)
    check_sizes(limit, max_length)
    read = read_splits(path, required=("train", "dev"))
    labels: dict[str, str | None] = dict.fromkeys(read, label)
    if "test" in read and all(missing(value) for value in read["test"][1].get(str(label), ())):
        labels["test"] = None
    tables = {split: table(*source, text, pair, labels[split]) for split, source in read.items()}
    name = folder(path).resolve().name
    rows = (tables["train"], tables["dev"], tables.get("test"))
    return assemble(name, *rows, metric=metric, limit=limit, max_length=max_length)
