"""The files in a run's folder that hold its numbers: metrics.jsonl, allocations.jsonl, summary.json."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from adarank.errors import RunFailed
from adarank.runs import allocations
from adarank.runs.files import ALLOCATIONS, METRICS, SUMMARY, json_line, read_json, read_lines, write_json, write_text

if TYPE_CHECKING:
    from adarank.harness.tracking.log import Log

Records = list[dict[str, Any]]


class LocalLog:
    """Appends one complete line per call to the files of `folder`, which must exist, and flushes it at once.

    step: None starts with empty files; a number keeps the lines up to that step, for a run that resumes there.
    In either case an earlier summary is removed, since the run is not finished. Raises OSError if the folder cannot be
    written and RunFailed if the lines to keep are damaged.
    """

    def __init__(self, folder: Path, step: int | None = None) -> None:
        self.folder = folder
        records: Records = []
        if step is not None:
            cut_back(folder, step)
            records, _ = allocations.read(folder / ALLOCATIONS)
        (folder / SUMMARY).unlink(missing_ok=True)
        self._modules = list(records[0]["ranks"]) if records else []
        self._allocation_count, self._surplus = len(records), 0
        mode = "wb" if step is None else "ab"
        self._metrics, self._allocations = ((folder / name).open(mode) for name in (METRICS, ALLOCATIONS))

    def metrics(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Append a line to metrics.jsonl: step, split, then each metric as a float, null if it is not finite."""
        record = {"step": step, "split": split} | {name: float(value) for name, value in values.items()}
        _append(self._metrics, json_line(record))

    def allocation(self, record: Mapping[str, Any]) -> None:
        """Append a line to allocations.jsonl. record: plain Python values, with `ranks` as {module name: rank}."""
        if not self._modules:
            self._modules = list(record["ranks"])
            _append(self._allocations, allocations.header(self._modules))
        _append(self._allocations, allocations.line(record, self._modules))
        self._allocation_count += 1
        self._surplus += not allocations.keeps_quantiles(self._allocation_count)
        if self._surplus > allocations.SURPLUS:
            self._allocations.close()
            self._trim()
            self._allocations, self._surplus = (self.folder / ALLOCATIONS).open("ab"), 0

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Close the files, then write summary.json atomically."""
        self.close()
        if self._modules:
            self._trim()
        write_json(self.folder / SUMMARY, summary)

    def close(self) -> None:
        """Close the files; does nothing if they are closed already."""
        self._metrics.close()
        self._allocations.close()

    def _trim(self) -> None:
        """Remove the quantiles that allocations.jsonl does not keep."""
        path = self.folder / ALLOCATIONS
        write_text(path, allocations.trim(path.read_text(encoding="utf-8")))


def cut_back(folder: Path, step: int) -> None:
    """Drop the lines after `step` optimiser steps from both JSONL files of `folder`, atomically.

    metrics.jsonl counts the steps done, while allocations.jsonl counts from 0, so that its step is one less. Test
    metrics are dropped whatever their step, since they will be measured again. A last line without a newline, which a
    crash cut off, is dropped, too. A missing file stays missing. Raises RunFailed if any other line is damaged.
    """
    metrics, ranks = folder / METRICS, folder / ALLOCATIONS
    if metrics.exists():
        kept = [row for row in _whole(metrics, read_lines) if row["step"] <= step and row["split"] != "test"]
        write_text(metrics, "".join(map(json_line, kept)))
    if ranks.exists():
        kept = [record for record in _whole(ranks, allocations.read) if record["step"] <= step - 1]
        write_text(ranks, allocations.document(kept))


def replay(folder: Path, log: "Log") -> None:
    """Send the contents of the files in `folder` to `log` in the order of the steps, as the run itself would have.

    Ends with `log.finish` if the run has a summary, else with `log.close`. Raises RunFailed for a damaged line.
    """
    replay_steps(folder, log)
    summary = folder / SUMMARY
    if summary.exists():
        log.finish(read_json(summary))
    else:
        log.close()


def replay_steps(folder: Path, log: "Log") -> None:
    """Replay the metrics and allocations, which have steps."""
    rows = _whole(folder / METRICS, read_lines) + _whole(folder / ALLOCATIONS, allocations.read)
    for row in sorted(rows, key=lambda row: row["step"]):  # stable, so that metrics come first within a step
        if "split" in row:
            values = {name: value for name, value in row.items() if name not in ("step", "split")}
            nan_for_null = {name: math.nan if value is None else value for name, value in values.items()}
            log.metrics(row["step"], row["split"], nan_for_null)
        else:
            log.allocation(row)


def _whole(path: Path, read: Callable[[Path], tuple[Records, list[int]]]) -> Records:
    """The records of a JSONL file without an incomplete last line. Raises RunFailed if any other line is damaged."""
    records, bad = read(path)
    if bad and bad[0] <= path.read_bytes().count(b"\n"):  # only an incomplete line lacks its newline
        raise RunFailed(f"{path}: line {bad[0]} is damaged; force=true runs it again")
    return records


def _append(file: IO[bytes], line: str) -> None:
    file.write(line.encode())
    file.flush()
