"""Files to columns. Every reader takes a path and what messages call it, and returns {column: values}."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from adarank.errors import SettingError

Columns = dict[str, list[Any]]


def delimited(
    path: Path, source: str, delimiter: str, quoted: bool, header: bool = True, torn: bool = False
) -> Columns:
    """Text columns of a delimited UTF-8 file; nothing is taken for a missing value or a number.

    quoted=False: quotes are characters like any other. header=False: columns `column 1`, `column 2`, … as far as
    every row has them. torn: rows that do not fit the header are left out. Raises SettingError where the rows do not fit
    the header.
    """
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file, delimiter=delimiter, quoting=quoting, strict=quoted) if row]
    except (csv.Error, UnicodeDecodeError) as error:
        raise SettingError(
            f"{source} cannot be read ({error}); valid: UTF-8 text, {_dialect(delimiter, quoted)}"
        ) from None
    names = rows[0] if header and rows else [f"column {i + 1}" for i in range(min(map(len, rows), default=0))]
    rows = [row for row in rows[1:] if not torn or len(row) == len(names)] if header else rows
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise SettingError(f"{source} has two columns named {min(twice)!r}; valid: a header with different names")
    if header:
        _check_widths(source, names, rows, _dialect(delimiter, quoted))
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


def _dialect(delimiter: str, quoted: bool) -> str:
    separator = "tabs" if delimiter == "\t" else "commas"
    return f"fields apart by {separator}, " + (
        'texts with commas, quotes or line breaks in "…"' if quoted else "no quoting"
    )


def _check_widths(source: str, names: Sequence[str], rows: Sequence[Sequence[str]], dialect: str) -> None:
    for number, row in enumerate(rows, 1):
        if len(row) != len(names):
            raise SettingError(
                f"{source}: row {number} has {len(row)} fields, the header has {len(names)}; valid: {dialect}"
            )


def comma_separated(path: Path, source: str) -> Columns:
    return delimited(path, source, ",", quoted=True)


def tab_separated(path: Path, source: str) -> Columns:
    """Without quoting, as GLUE and the definition of text/tab-separated-values have it."""
    return delimited(path, source, "\t", quoted=False)


def json_lines(path: Path, source: str) -> Columns:
    """One JSON object a line; a key that a row lacks is None there."""
    rows = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except ValueError as error:
                raise SettingError(f"{source}: line {number} is no JSON ({error}); valid: one object a line") from None
            if not isinstance(row, dict):
                raise SettingError(f"{source}: line {number} is no JSON object; valid: one object a line")
            rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def parquet(path: Path, source: str) -> Columns:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table
    except ImportError:
        raise SettingError(f"{source} needs pyarrow to be read; pip install 'adarank[parquet]'") from None
    try:
        return dict(read_table(path).to_pydict())
    except ArrowException as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise SettingError(f"{source} is no readable Parquet file ({reason}); valid: a table in Parquet") from None


READERS: dict[str, Callable[[Path, str], Columns]] = {
    ".csv": comma_separated,
    ".tsv": tab_separated,
    ".jsonl": json_lines,
    ".parquet": parquet,
}


def folder(path: str) -> Path:
    """The folder that task.path names. Raises SettingError where there is none."""
    found = Path(str(path)).expanduser()
    if not found.is_dir():
        kind = "a file" if found.exists() else "not there"
        raise SettingError(f"task.path={path} is {kind}; valid: a folder with the task's files")
    return found


def holds(where: Path) -> str:
    """What a folder holds, for messages."""
    names = sorted(p.name + "/" * p.is_dir() for p in where.iterdir() if not p.name.startswith("."))
    return f"it holds: {', '.join(names[:12])}{', …' if len(names) > 12 else ''}" if names else "it is empty"
