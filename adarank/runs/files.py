"""The files of a run's folder: what they are called, how they are read, and writes that no reader sees half-done."""

import json
import math
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
ALLOCATIONS = "allocations.jsonl"
SUMMARY = "summary.json"
STATUS = "status.json"
PREDICTIONS = "predictions.npz"
PROBE = "probe.json"
JOURNAL = "probe.jsonl"  # of an unfinished probe: one line per finished batch
DELTA = "delta.json"
SIMILARITY = "similarity.json"
FORGETTING = "forgetting.json"
ADAPTER = "adapter"  # folder
CHECKPOINT = "checkpoint"  # folder
WANDB = "wandb"  # folder


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises OSError where it cannot be read and ValueError where it is no JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_object(path: Path) -> tuple[dict[str, Any], str]:
    """(a JSON object, what is wrong with the file); ({}, "") where there is no such file. Raises nothing."""
    try:
        value = read_json(path)
    except FileNotFoundError:
        return {}, ""
    except (OSError, ValueError):
        return {}, f"{path.name} cannot be read"
    return (value, "") if isinstance(value, dict) else ({}, f"{path.name} is not an object")


def read_lines(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """(the objects of a JSONL file, the numbers from 1 of the other lines); both empty where there is no such file."""
    lines = parsed_lines(path)
    records = [line for line in lines if line is not None]
    return records, [number for number, line in enumerate(lines, start=1) if line is None]


def parsed_lines(path: Path) -> list[dict[str, Any] | None]:
    """The object on every line of a JSONL file, None where there is none; [] where there is no such file."""
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


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to a temporary file in the same folder, then rename it to `path`. An OSError names `path`."""
    unique = uuid.uuid4().hex[:12]  # process numbers repeat across the machines of a cluster
    temporary = path.with_name(f".{path.name}.{unique}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename = str(path)  # where the disk is full, the error itself names no file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for text, in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Write `value` as JSON, atomically; floats that JSON cannot hold become null. indent: None: no white space."""
    separators = (",", ":") if indent is None else None
    write_text(path, json.dumps(finite(value), indent=indent, separators=separators, allow_nan=False) + "\n")


def json_line(record: dict[str, Any]) -> str:
    """A record as one line of a JSONL file, newline included; floats that JSON cannot hold become null."""
    try:
        return json.dumps(record, allow_nan=False) + "\n"
    except ValueError:  # rare, and `finite` is slow
        return json.dumps(finite(record), allow_nan=False) + "\n"
