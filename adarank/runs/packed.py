"""Packed runs: experiments/pack.py joins the finished runs of a folder in one small file, `runs.jsonl.xz`, with one
line per run. Runs of one method share most of their text, which xz stores once."""

import json
import lzma
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adarank.errors import SettingError

FINISHED = "finished"  # the state of every packed run
FILE = "runs.jsonl.xz"


def record_files(results: Path) -> list[Path]:
    """The files of packed runs below `results`, at any depth, sorted by path."""
    return sorted(results.rglob(FILE))


def read_records(results: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """(the folder that the run would have if it were unpacked in place, its record) of every packed run below
    `results`, one run at a time."""
    for file in record_files(results):
        for name, record in read_file(file):
            yield file.parent / name, record


def read_file(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, record) of the runs of one file, sorted by name; none if there is no such file. A record has config,
    summary, metrics, modules, allocations and, if the run has them, measures and predictions. Raises SettingError if
    the file is damaged."""
    if not file.exists():
        return
    try:
        with lzma.open(file, "rt", encoding="utf-8") as lines:
            for line in lines:
                record = json.loads(line)
                yield record.pop("run"), record
    except (lzma.LZMAError, EOFError, ValueError, LookupError, TypeError, AttributeError):
        raise SettingError(f"{file} is damaged; restore it, or pack its runs again") from None


def read_record(folder: Path) -> dict[str, Any]:
    """The record of the packed run that would have this folder if it were unpacked in place. Raises SettingError if
    there is none."""
    for name, record in read_file(folder.parent / FILE):
        if name == folder.name:
            return record
    raise SettingError(f"{folder} must be a packed run (got {folder.parent / FILE} without it)")


def allocations_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The allocations of a packed run with `ranks` as {module name: rank}."""
    modules = record["modules"]
    return [{**kept, "ranks": dict(zip(modules, kept["ranks"], strict=True))} for kept in record["allocations"]]
