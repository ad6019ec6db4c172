"""Packed runs: experiments/pack.py stores each finished run as one small file, `<run>.json.gz`."""

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from adarank.errors import SettingError

FINISHED = "finished"  # the state of every packed run
SUFFIX = ".json.gz"


def record_files(results: Path) -> list[Path]:
    """The packed runs below `results`, at any depth, sorted by path."""
    return sorted(results.rglob(f"*-s*{SUFFIX}"))


def run_name(file: Path) -> str:
    """The name of a packed run's folder."""
    return file.name.removesuffix(SUFFIX)


def read_record(file: Path) -> dict[str, Any]:
    """The content of a packed run: config, summary, metrics, modules, allocations and, if it has them, measures and
    predictions. Raises SettingError if the file is damaged."""
    try:
        record: dict[str, Any] = json.loads(gzip.decompress(file.read_bytes()))
    except (gzip.BadGzipFile, zlib.error, EOFError, ValueError):
        raise SettingError(f"{file} is damaged; restore it, or pack its run again") from None
    return record


def allocations_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The allocations of a packed run with `ranks` as {module name: rank}."""
    modules = record["modules"]
    return [{**kept, "ranks": dict(zip(modules, kept["ranks"], strict=True))} for kept in record["allocations"]]
