"""The files of a run's folder: their names, how to read them, and how to write them atomically."""

import errno
import json
import math
import os
import re
import sys
import traceback
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
ALLOCATIONS = "allocations.jsonl"
SUMMARY = "summary.json"
STATUS = "status.json"
PREDICTIONS = "predictions.npz"
UNLABELLED = "predictions.jsonl"  # for a test set without labels
TRACEBACK = "traceback.txt"  # of a run that failed with an unexpected exception
PROBE = "probe.json"
JOURNAL = "probe.jsonl"  # of an unfinished probe: one line per finished batch
PRUNING = "pruning.json"
PRUNING_JOURNAL = "pruning.jsonl"  # of an unfinished measurement: one line per pruned state
DELTA = "delta.json"
SIMILARITY = "similarity.json"
FORGETTING = "forgetting.json"
PREFIXES = "prefixes.json"
ADAPTER = "adapter"  # folder
CHECKPOINT = "checkpoint"  # folder
WANDB = "wandb"  # folder


TEMPORARY = re.compile(r"\..+\.(?:[0-9a-f]{12}|\d+)\.tmp")  # of `replacing`, and of adarank.adapters.saving
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}  # errors of a full or broken disk


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises OSError if it cannot be read and ValueError if it is not JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_object(path: Path) -> tuple[dict[str, Any], str]:
    """(a JSON object, what is wrong with the file); ({}, "") if there is no such file. Raises nothing."""
    try:
        value = read_json(path)
    except FileNotFoundError:
        return {}, ""
    except (OSError, ValueError):
        return {}, f"{path.name} cannot be read"
    return (value, "") if isinstance(value, dict) else ({}, f"{path.name} is not an object")


def read_lines(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """(the objects of a JSONL file, the numbers of the other lines, counted from 1); both empty if there is no file."""
    lines = parsed_lines(path)
    records = [line for line in lines if line is not None]
    return records, [number for number, line in enumerate(lines, start=1) if line is None]


def parsed_lines(path: Path) -> list[dict[str, Any] | None]:
    """The object on every line of a JSONL file, None for a line that holds none; [] if there is no file."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []

    def parsed(line: str) -> dict[str, Any] | None:
        try:
            value = json.loads(line)
        except ValueError:
            return None
        return value if isinstance(value, dict) else None

    return list(map(parsed, lines))


def finite(value: Any) -> Any:
    """`value` with every NaN or infinite float, at any depth, replaced by None (JSON has neither)."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file in the same folder for writing, and rename it to `path` at the end unless something fails.
    An OSError names `path`."""
    unique = uuid.uuid4().hex[:12]  # process ids repeat across the machines of a cluster
    temporary = path.with_name(f".{path.name}.{unique}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename = str(path)  # on a full disk the error itself names no file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def leftovers(folder: Path) -> list[Path]:
    """The temporary files below `folder`, which processes left that were killed while writing, unless one still
    writes."""
    return [path for path in folder.rglob(".*.tmp") if TEMPORARY.fullmatch(path.name) and path.is_file()]


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by a file with `data`, completely or not at all. An OSError names `path`."""
    with replacing(path) as file:
        file.write(data)


def is_unwritable(error: BaseException, folder: Path) -> bool:
    """Whether an error concerns writing to `folder` (its disk is full, say) rather than the run itself."""
    if not isinstance(error, OSError):
        return False
    inside = isinstance(error.filename, str) and Path(error.filename).is_relative_to(folder)
    return inside or error.errno in UNWRITABLE


def write_traceback(path: Path | None) -> str:
    """Write the traceback of the exception that is being handled; returns "(traceback: PATH)" for a message.

    If `path` is None or cannot be written, the traceback is printed to stderr instead, and the text is empty.
    """
    try:
        if path is not None:
            write_text(path, traceback.format_exc())
            return f"(traceback: {path})"
    except OSError as error:
        print(f"{path} cannot be written ({error.strerror}):", file=sys.stderr)
    traceback.print_exc()
    return ""


def first_line(error: BaseException) -> str:
    """An exception's type and the first line of its message."""
    message = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for text, encoded as UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Write `value` as JSON, atomically; NaN and infinite floats become null. indent: None writes no white space."""
    separators = (",", ":") if indent is None else None
    write_text(path, json.dumps(finite(value), indent=indent, separators=separators, allow_nan=False) + "\n")


def json_line(record: dict[str, Any]) -> str:
    """A record as one line of a JSONL file, including the newline; NaN and infinite floats become null."""
    try:
        return json.dumps(record, allow_nan=False) + "\n"
    except ValueError:  # rare, and `finite` is slow
        return json.dumps(finite(record), allow_nan=False) + "\n"
