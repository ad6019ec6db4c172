"""The state of every run below a folder, as a table. This module only reads files."""

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from adarank.errors import SettingError
from adarank.runs import lock
from adarank.runs.files import CONFIG, STATUS, SUMMARY, read_object

STATES = ("finished", "running", "failed", "stale", "incomplete")
MARKS = {STATUS, SUMMARY, CONFIG}  # a folder that contains one of these is a run's folder
PAUSE = 2.0  # seconds between two refreshes on a terminal


@dataclass(frozen=True)
class Row:
    """One run. state: one of STATES (stale: its process ended before the run did; incomplete: files are missing);
    note: the metric, the time left or the error."""

    name: str
    state: str
    step: int
    steps: int
    note: str


def read(out: Path) -> list[Row]:
    """The runs below `out`, sorted by name. Raises SettingError if there is no such folder."""
    if not out.is_dir():
        raise SettingError(f"OUT must be a folder that holds runs (got {out})")
    return [_row(folder, folder.relative_to(out).as_posix()) for folder in run_folders(out)]


def run_folders(out: Path) -> list[Path]:
    """The run folders below `out`, or `out` itself, sorted by path. Links are followed, and each folder is listed
    once."""
    found, seen = [], set()
    for parent, names, files in os.walk(out, followlinks=True):
        real = os.path.realpath(parent)
        if real not in seen and MARKS.intersection(files):
            found.append(Path(parent))
        if real in seen or {STATUS, SUMMARY}.intersection(files):
            names.clear()  # a run's folder contains no other run, even though W&B calls files in it config.yaml, too
        seen.add(real)
    return sorted(found)


def state_of(folder: Path, status: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """A run's state: one of STATES, or "diverged". status, summary: the contents of the two files, {} if missing."""
    state = str(status.get("state", summary.get("status")))
    if state == "running":
        return "running" if lock.holder(folder) is not None else "stale"
    return state if state in ("failed", "diverged") or (state == "finished" and summary) else "incomplete"


def _row(folder: Path, name: str) -> Row:
    status, summary = (read_object(folder / file)[0] for file in (STATUS, SUMMARY))
    step, steps = int(status.get("step") or 0), int(status.get("steps") or 0)
    state = state_of(folder, status, summary)
    if state == "running":
        note = _left(status)
    elif state == "stale":
        note = "its process ended; the same command resumes it"
    elif state in ("failed", "diverged"):
        state, note = "failed", str(status.get("error") or "")
    elif state == "finished":
        metric = summary.get("metric") or {}
        value = metric.get("test") if metric.get("test") is not None else metric.get("last")
        note = f"{metric.get('name')} {value:.4f}" if isinstance(value, float) else ""
    else:
        note = f"no {SUMMARY}" if status else f"no {STATUS}"
    return Row(name, state, step, steps, note)


def _left(status: dict[str, Any]) -> str:
    """The time left, estimated from the steps since the process began."""
    done = status["step"] - status.get("started_step", 0)
    if not status.get("steps") or done <= 0:
        return "starting"
    passed = (datetime.now(UTC) - datetime.fromisoformat(status["started"])).total_seconds()
    left = passed / done * (status["steps"] - status["step"])
    return f"about {duration(left)} left"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def table(rows: list[Row]) -> str:
    """One line per run, then one line with the totals."""
    width = max((len(row.name) for row in rows), default=0)
    lines = [
        f"{row.name:{width}}  {row.state:10}  {f'{row.step}/{row.steps}' if row.steps else '':>11}  {row.note}".rstrip()
        for row in rows
    ]
    counts = ", ".join(f"{sum(row.state == state for row in rows)} {state}" for state in STATES)
    return "\n".join([*lines, counts])


def watch(out: Path) -> None:
    """Print the table; on a terminal, refresh it while any run is running."""
    while True:
        rows = read(out)
        if sys.stdout.isatty():
            print("\x1b[H\x1b[2J", end="")
        print(table(rows), flush=True)
        if not sys.stdout.isatty() or not any(row.state == "running" for row in rows):
            return
        time.sleep(PAUSE)
