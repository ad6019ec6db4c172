"""The state of every run below a folder, as a table. Files are only read."""

import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from adarank.errors import SettingError
from adarank.runs import lock
from adarank.runs.files import CONFIG, STATUS, SUMMARY, read_object

STATES = ("finished", "running", "failed", "stale", "incomplete")
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
    """The runs below `out`, sorted by name. Raises SettingError where there is no such folder."""
    if not out.is_dir():
        raise SettingError(f"OUT must be a folder that holds runs (got {out})")
    folders = sorted({p.parent for name in (STATUS, CONFIG) for p in out.rglob(name)})

    def inside(folder: Path) -> bool:
        """Whether the folder is part of a run's folder, as W&B's files are."""
        return any((parent / STATUS).is_file() for parent in folder.parents if parent.is_relative_to(out))

    return [_row(folder, folder.relative_to(out).as_posix()) for folder in folders if not inside(folder)]


def _row(folder: Path, name: str) -> Row:
    status, summary = (read_object(folder / file)[0] for file in (STATUS, SUMMARY))
    step, steps = int(status.get("step") or 0), int(status.get("steps") or 0)
    state, note = str(status.get("state")), ""
    if state == "running":
        state = "running" if lock.holder(folder) is not None else "stale"
        note = _left(status) if state == "running" else "its process ended; the same command resumes it"
    elif state in ("failed", "diverged"):
        state, note = "failed", str(status.get("error") or "")
    elif state == "finished" and summary:
        metric = summary.get("metric") or {}
        value = metric.get("test") if metric.get("test") is not None else metric.get("last")
        note = f"{metric.get('name')} {value:.4f}" if isinstance(value, float) else ""
    else:
        state, note = "incomplete", f"no {SUMMARY}" if status else f"no {STATUS}"
    return Row(name, state, step, steps, note)


def _left(status: dict[str, Any]) -> str:
    """The time left, estimated from the steps since the process began."""
    done = status["step"] - status.get("started_step", 0)
    if not status.get("steps") or done <= 0:
        return "starting"
    passed = (datetime.now(UTC) - datetime.fromisoformat(status["started"])).total_seconds()
    left = passed / done * (status["steps"] - status["step"])
    return f"about {_duration(left)} left"


def _duration(seconds: float) -> str:
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
    """Print the table; on a terminal, refresh it as long as a run is running."""
    while True:
        rows = read(out)
        if sys.stdout.isatty():
            print("\x1b[H\x1b[2J", end="")
        print(table(rows), flush=True)
        if not sys.stdout.isatty() or not any(row.state == "running" for row in rows):
            return
        time.sleep(PAUSE)
