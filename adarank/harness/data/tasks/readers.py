"""Readers for file formats; each takes a path and the file's name for messages, and returns {column: values}."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from adarank.errors import SettingError

Columns = dict[str, list[Any]]
csv.field_size_limit(2**31 - 1)  # a text may be longer than the 131,072 characters that the module allows by default


@contextmanager
def opened(path: Path, source: str) -> Iterator[IO[bytes]]:
    """The bytes of a file, decompressed if its name ends in .gz."""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            yield file  # type: ignore[misc]
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise SettingError(f"{source} cannot be decompressed ({error}); it must be a complete gzip file") from None


def delimited(
    path: Path, source: str, delimiter: str, quoted: bool, header: bool = True, torn: bool = False
) -> Columns:
    """Text columns of a delimited UTF-8 file; no value is interpreted as missing or as a number.

    quoted=False: quotes are ordinary characters. header=False: the columns that every row has are called `column 1`,
    `column 2`, … torn: skip rows that do not fit the header, which otherwise raise SettingError.
    """
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    separator = "tabs" if delimiter == "\t" else "commas"
    quotes = 'and texts with commas, quotes or line breaks in "…"' if quoted else "and no quoting"
    dialect = f"fields separated by {separator} {quotes}"
    with opened(path, source) as file:
        # A lone carriage return ends a line, too, as in files from old Macs.
        lines = (part for line in _lines(file, source) for part in io.StringIO(line, newline=""))
        reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=quoted)
        try:
            rows = [row for row in reader if row]
        except csv.Error as error:
            raise SettingError(
                f"{source}: line {reader.line_num} cannot be read ({error}); the file must have {dialect}"
            ) from None
    names = rows[0] if header and rows else [f"column {i + 1}" for i in range(min(map(len, rows), default=0))]
    rows = [row for row in rows[1:] if not torn or len(row) == len(names)] if header else rows
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise SettingError(f"{source} has two columns named {min(twice)!r}; column names must differ")
    for number, row in enumerate(rows, 1):
        if header and len(row) != len(names):
            raise SettingError(
                f"{source}: row {number} has {len(row)} fields, but the header has {len(names)}; the file must have "
                f"{dialect}"
            )
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


def _lines(file: IO[bytes], source: str) -> Iterator[str]:
    """The lines of a UTF-8 file. Raises SettingError, naming the line, if they are not UTF-8."""
    for number, line in enumerate(file, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise SettingError(f"{source}: line {number} must be UTF-8 text ({error})") from None


def comma_separated(path: Path, source: str) -> Columns:
    return delimited(path, source, ",", quoted=True)


def tab_separated(path: Path, source: str) -> Columns:
    """Reads without quoting, as in GLUE and in the definition of text/tab-separated-values."""
    return delimited(path, source, "\t", quoted=False)


def json_lines(path: Path, source: str) -> Columns:
    """Reads one JSON object per line; a key that is missing from a row is None in that row."""
    rows = []
    with opened(path, source) as file:
        for number, line in enumerate(_lines(file, source), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise SettingError(f"{source}: line {number} must be a JSON object ({error})") from None
            if not isinstance(row, dict):
                raise SettingError(f"{source}: line {number} must be a JSON object (got {type(row).__name__})")
            rows.append(row)
    return _columns(rows)


def json_array(path: Path, source: str) -> Columns:
    """Reads a list of JSON objects, or an object with such a list as `data`; a key that is missing from a row is None
    in that row."""
    with opened(path, source) as file:
        text = "".join(_lines(file, source))
    try:
        content = json.loads(text)
    except ValueError as error:
        raise SettingError(f"{source} must be JSON ({error}); name a file with one object per line .jsonl") from None
    rows = content.get("data") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise SettingError(f'{source} must be a list of JSON objects, or {{"data": [objects]}}')
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise SettingError(f"{source}: row {number} must be a JSON object (got {type(row).__name__})")
    return _columns(rows)


def _columns(rows: Sequence[dict[str, Any]]) -> Columns:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def parquet(path: Path, source: str) -> Columns:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table
    except ImportError:
        raise SettingError(f"{source} cannot be read without pyarrow; pip install 'adarank[parquet]'") from None
    try:
        return dict(read_table(path).to_pydict())
    except ArrowException as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise SettingError(f"{source} must be a table in Parquet ({reason})") from None


TEXT: dict[str, Callable[[Path, str], Columns]] = {
    ".csv": comma_separated, ".tsv": tab_separated, ".jsonl": json_lines, ".json": json_array,
}  # fmt: skip
READERS = {**TEXT, **{f"{suffix}.gz": reader for suffix, reader in TEXT.items()}, ".parquet": parquet}


def folder(path: str) -> Path:
    """The folder that task.path names. Raises SettingError if there is none."""
    where = Path(str(path)).expanduser()
    if not where.is_dir():
        problem = "is a file" if where.exists() else "does not exist"
        raise SettingError(f"task.path must be a folder with the task's files ({path} {problem})")
    return where


def folder_with(path: str, *files: str, owner: str = "", inside: str = "") -> Path:
    """The folder that contains all of `files`: `path`, or its subfolder `inside` if it has one.

    owner: the files' owner, for messages. Raises SettingError if a file is missing.
    """
    where = folder(path)
    where = where / inside if (where / inside).is_dir() else where
    for file in files:
        if not (where / file).is_file():
            raise SettingError(f"task.path must hold {owner}{file} ({path}: {holds(where)})")
    return where


def read_splits(path: str, required: Sequence[str]) -> dict[str, tuple[str, Columns]]:
    """{split: (its file's name in messages, columns)} of the files called train, dev and test in the folder `path`.

    Raises SettingError if a split has several files, or if a required split has none.
    """
    where = folder(path)
    splits = {}
    for split in ("train", "dev", "test"):
        suffixes = {p: p.name.removeprefix(split).lower() for p in sorted(where.iterdir()) if p.is_file()}
        files = [p for p, suffix in suffixes.items() if p.name.startswith(split) and suffix in READERS]
        if len(files) > 1:
            names = ", ".join(p.name for p in files)
            raise SettingError(f"task.path={path} must have one file per split (it has {names} for {split})")
        if files:
            source = f"{files[0].name} (task.path={path})"
            splits[split] = (source, READERS[suffixes[files[0]]](files[0], source))
        elif split in required:
            names = " or ".join(f"{split}{suffix}" for suffix in (*TEXT, ".parquet"))
            raise SettingError(
                f"task.path={path} has no {split} file; it must hold {names}, of which all but the last may be "
                f"compressed as .gz ({holds(where)})"
            )
    return splits


def holds(where: Path) -> str:
    """The names of a folder's files, for messages."""
    names = sorted(p.name + "/" * p.is_dir() for p in where.iterdir() if not p.name.startswith("."))
    return f"it holds {', '.join(names[:12])}{', …' if len(names) > 12 else ''}" if names else "it is empty"
