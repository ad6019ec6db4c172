"""The files of a run folder, read one by one. What is missing or damaged is said, never guessed."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any


def read_object(path: Path) -> tuple[dict[str, Any], str]:
    """A JSON object and the fault found ("" when it is there or missing altogether)."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}, ""
    except (OSError, ValueError):
        return {}, f"{path.name} cannot be read"
    return (value, "") if isinstance(value, dict) else ({}, f"{path.name} is not an object")


def read_config(folder: Path) -> dict[str, str] | None:
    """`config.yaml`, flattened to {"train.lr": "0.001"}; None when it is missing or cannot be read.

    `{score: {_target_: package.scores.adalora}}` becomes {"score": "adalora"}.
    """
    import yaml  # type: ignore[import-untyped]

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster where libyaml is there
    try:
        config = yaml.load((folder / "config.yaml").read_text(encoding="utf-8"), Loader=loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return dict(_flat(config)) if isinstance(config, dict) else None


def read_lines(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The objects of a JSONL file, and the numbers (from 1) of lines that are none; empty lists without the file."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return [], []
    records, bad = [], []
    for place, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            bad.append(place)
    return records, bad


def read_counts(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file up to their key "ranks", where they have one; unreadable lines are left out.

    Maps of modules are nearly all of an allocations file, and reading thousands of them whole would take minutes.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return []
    found = (_loaded(line.partition(b', "ranks"')[0] + b"}") or _loaded(line) for line in lines if line.endswith(b"}"))
    return [record for record in found if record]


def number(value: Any) -> float | None:
    """`value` as a float when it is a finite number, else None."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of those that are known, None where none is."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def text(value: Any) -> str:
    """A setting's value as it is shown."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(text(item) for item in value)
    return str(value)


def _loaded(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif key == "_target_":
            yield prefix.removesuffix(".") or key, text(value).rpartition(".")[2]
        else:
            yield f"{prefix}{key}", text(value)
