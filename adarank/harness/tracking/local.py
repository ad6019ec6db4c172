"""The files of a run's folder that hold its numbers: metrics.jsonl, allocations.jsonl, summary.json."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from adarank.harness.files import finite, write_json, write_text

if TYPE_CHECKING:
    from adarank.harness.tracking.protocol import Log

METRICS = "metrics.jsonl"
ALLOCATIONS = "allocations.jsonl"
SUMMARY = "summary.json"


class LocalLog:
    """Appends to the files of `folder` (which exists), one whole line a call, flushed at once.

    step: None starts from empty files; a step keeps the lines up to it, for a run that resumes there.
    Either way an earlier summary is removed: the run is not finished now. Raises OSError if the folder cannot
    be written.
    """

    def __init__(self, folder: Path, step: int | None = None) -> None:
        self.folder = folder
        if step is not None:
            cut_back(folder, step)
        (folder / SUMMARY).unlink(missing_ok=True)
        self._metrics, self._allocations = (_open(folder / name, fresh=step is None) for name in (METRICS, ALLOCATIONS))

    def metrics(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """One line of metrics.jsonl: step, split, then each metric as a float, null if it is not finite."""
        _append(self._metrics, {"step": step, "split": split} | {name: float(value) for name, value in values.items()})

    def allocation(self, record: Mapping[str, Any]) -> None:
        """One line of allocations.jsonl, the record as it is (plain Python values)."""
        _append(self._allocations, record)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json, atomically, and close."""
        self.close()
        write_json(self.folder / SUMMARY, summary)

    def close(self) -> None:
        """Close the files; harmless when they are closed."""
        self._metrics.close()
        self._allocations.close()


def cut_back(folder: Path, step: int) -> None:
    """Drop what came after `step` optimiser steps from both JSONL files of `folder`, atomically.

    Test is measured after the last step, at whatever step was best, and will be again: its lines go. metrics.jsonl counts steps done, allocations.jsonl the steps from 0, so that its step is one less. A last line without its newline was torn by a crash and is dropped too; a missing file stays missing.
    Raises json.JSONDecodeError for a broken line elsewhere.
    """
    for path, last in ((folder / METRICS, step), (folder / ALLOCATIONS, step - 1)):
        if path.exists():
            lines = path.read_text(encoding="utf-8").split("\n")[:-1]
            write_text(path, "".join(f"{line}\n" for line in lines if _stays(json.loads(line), last)))


def _stays(row: Mapping[str, Any], last: int) -> bool:
    return row["step"] <= last and row.get("split") != "test"


def replay(folder: Path, log: "Log") -> None:
    """Send what the files of `folder` hold to `log`, as the run itself would have, in the order of the steps.

    Ends with `log.finish` if the run has a summary, else with `log.close`.
    """
    replay_steps(folder, log)
    summary = folder / SUMMARY
    if summary.exists():
        log.finish(json.loads(summary.read_text(encoding="utf-8")))
    else:
        log.close()


def replay_steps(folder: Path, log: "Log") -> None:
    """The part of `replay` that has steps: metrics and allocations."""
    rows = _rows(folder / METRICS) + _rows(folder / ALLOCATIONS)
    for row in sorted(rows, key=lambda row: row["step"]):  # stable: metrics come first within a step
        if "split" in row:
            values = {name: value for name, value in row.items() if name not in ("step", "split")}
            nan_for_null = {name: math.nan if value is None else value for name, value in values.items()}
            log.metrics(row["step"], row["split"], nan_for_null)
        else:
            log.allocation(row)


def _open(path: Path, *, fresh: bool) -> BinaryIO:
    return path.open("wb") if fresh else path.open("ab")


def _append(file: BinaryIO, record: Mapping[str, Any]) -> None:
    file.write((json.dumps(finite(record), allow_nan=False) + "\n").encode())
    file.flush()


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
