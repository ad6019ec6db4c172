"""A task from your own files."""

from adarank.harness.data.tasks.base import Task
from adarank.harness.data.tasks.readers import folder, read_splits
from adarank.harness.data.tasks.rows import assemble, check_metric, check_sizes, table


def files(
    path: str,
    text: str = "text",
    pair: str | None = None,
    label: str = "label",
    metric: str | None = None,
    limit: int | None = None,
    max_length: int = 128,
) -> Task:
    """A folder with train, dev and, optionally, test as .csv, .tsv, .jsonl or .parquet, each with named columns.

    CSV is quoted, TSV is not; both are UTF-8 with a header. text, pair, label: names of columns. Labels that are words
    or whole numbers are classes; numbers with a fraction are regression targets. metric: a metric of labels; None:
    accuracy, or pearson_spearman for regression. Raises SettingError, naming file and row.
    """
    check_metric(metric)
    check_sizes(limit, max_length)
    tables = {s: table(*read, text, pair, label) for s, read in read_splits(path, required=("train", "dev")).items()}
    name = folder(path).resolve().name
    rows = (tables["train"], tables["dev"], tables.get("test"))
    return assemble(name, *rows, metric=metric, limit=limit, max_length=max_length)
