"""The state of every run under a folder, as a table for people; reads files, changes nothing."""

import json
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from adarank.errors import SettingError
from adarank.harness import lock, runs

STATES = ("finished", "running", "failed", "stale", "incomplete")
PAUSE = 2.0  # seconds between two looks on a terminal


@dataclass(frozen=True)
class Row:
    """One run. state: one of STATES (stale: it was running when its process ended; incomplete: a folder that lacks what
    its state promises); note: the metric, the time left or the last error line."""

    name: str
    state: str
    step: int
    steps: int
    note: str


def read(out: Path) -> list[Row]:
    """The runs under `out`, by name. Raises SettingError where there is no such folder."""
    if not out.is_dir():
        raise SettingError(f"OUT={out} is no folder; valid: the out=FOLDER of a sweep")
    folders = sorted({p.parent for name in ("status.json", "config.yaml") for p in out.rglob(name)})
    return [_row(folder, folder.relative_to(out).as_posix()) for folder in folders if not _inside(folder, out)]


def _inside(folder: Path, out: Path) -> bool:
    """Whether a run's own folder, W&B's files say, is what `folder` lies in."""
    return any((parent / "status.json").is_file() for parent in folder.parents if parent.is_relative_to(out))


def _row(folder: Path, name: str) -> Row:
    status = runs.read_status(folder)
    summary = _summary(folder)
    step, steps = int(status.get("step") or 0), int(status.get("steps") or 0)
    state, note = str(status.get("state")), ""
    if state == "running":
        state = "running" if lock.holder(folder) is not None else "stale"
        note = _left(status) if state == "running" else "its process ended; the same command goes on with it"
    elif state in ("failed", "diverged"):
        state, note = "failed", str(status.get("error") or "")
    elif state == "finished" and summary:
        metric = summary.get("metric") or {}
        value = metric.get("test") if metric.get("test") is not None else metric.get("last")
        note = f"{metric.get('name')} {value:.4f}" if isinstance(value, float) else ""
    else:
        state = "incomplete"
        note = "no summary.json" if status else "no status.json"
    return Row(name, state, step, steps, note)


def _summary(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _left(status: dict[str, Any]) -> str:
    """The time left, from the steps since the process began."""
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
    """A line a run, and one with the totals, each run counted once."""
    width = max((len(row.name) for row in rows), default=0)
    lines = [
        f"{row.name:{width}}  {row.state:10}  {f'{row.step}/{row.steps}' if row.steps else '':>11}  {row.note}".rstrip()
        for row in rows
    ]
    counts = ", ".join(f"{sum(row.state == state for row in rows)} {state}" for state in STATES)
    return "\n".join([*lines, counts])


def watch(out: Path) -> None:
    """Print the table; on a terminal go on as long as something runs."""
    while True:
        rows = read(out)
        if sys.stdout.isatty():
            print("\x1b[H\x1b[2J", end="")
        print(table(rows), flush=True)
        if not sys.stdout.isatty() or not any(row.state == "running" for row in rows):
            return
        time.sleep(PAUSE)
