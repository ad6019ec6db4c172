"""Reads run folders. Runs that cannot be counted are kept, each with the reason."""

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from adarank.runs import settings as run_settings
from adarank.runs.files import ALLOCATIONS, CONFIG, METRICS, STATUS, SUMMARY, read_object
from adarank.runs.settings import text as text

T = TypeVar("T")

FILES = (STATUS, SUMMARY, CONFIG, METRICS, ALLOCATIONS)
RUN_NAME = re.compile(r".+-[0-9a-f]{6,}-s\d+")  # <method>-<hash>-s<seed>: a run that died before its first file
SEED = re.compile(r"-s(\d+)$")


class FolderError(ValueError):
    """A folder that cannot be analysed; the message is one sentence."""


@dataclass(frozen=True)
class Run:
    """One run folder.

    name: its path relative to the folder that was read, with forward slashes; configuration: the folder's name without
    `-s<seed>`, shared by all seeds of a configuration; state: "finished" (then `summary` is complete enough to be
    counted), or "failed", "diverged", "running", "incomplete", "corrupt", "duplicate" with the reason in `reason`;
    seed: -1 if there is none (never in a finished run); checkpoint: the one by which the run is judged, "last" or
    "best" (on dev).
    """

    folder: Path
    name: str
    configuration: str
    seed: int
    state: str
    reason: str = ""
    summary: dict[str, Any] = field(default_factory=dict)
    checkpoint: str = "last"

    @property
    def score(self) -> tuple[str, float]:
        """The split and value by which a finished run is judged: test at `checkpoint`, or metric.last (dev) without
        one.

        A run from an older version, without test_last, is judged by the best checkpoint.
        """
        metric = self.summary["metric"]
        if (test := number(metric.get("test"))) is None:
            return "dev", float(metric["last"])
        last = number(metric.get("test_last")) if self.checkpoint == "last" else None
        return "test", test if last is None else last

    @property
    def best_score(self) -> float | None:
        """The value of the best checkpoint, whose weights the run keeps, on the split by which it is judged."""
        return number(self.summary["metric"].get("test" if self.score[0] == "test" else "best"))

    @property
    def other_score(self) -> float | None:
        """The test value of the other checkpoint: best for a run judged by last, and the reverse; None without both."""
        metric = self.summary["metric"]
        best, last = number(metric.get("test")), number(metric.get("test_last"))
        return None if best is None or last is None else best if self.checkpoint == "last" else last

    @property
    def dev(self) -> float | None:
        """The dev value of the checkpoint by which the run is judged, which also chooses its learning rate."""
        best, last = (number(self.summary["metric"].get(key)) for key in ("best", "last"))
        return best if last is None or self.checkpoint == "best" else last

    @property
    def arm(self) -> str | None:
        """The study's name for the run's configuration, None outside a study."""
        return self.summary.get("arm")


def read_runs(out: Path, checkpoint: str = "last") -> list[Run]:
    """Every run folder under `out`, at any depth, sorted by name; reads only summaries and states.

    checkpoint: the one by which the runs are judged.

    Raises FolderError if `out` is not a folder or contains no run folder.
    """
    if not out.is_dir():
        raise FolderError(f"{out} is not a folder; give the folder that contains the run folders.")
    if _is_run(out):
        raise FolderError(f"{out} is itself a run folder; give the folder that contains it.")
    runs = sorted((_read_run(folder, out, checkpoint) for folder in _run_folders(out)), key=lambda run: run.name)
    if not runs:
        raise FolderError(f"{out} contains no run folder.")
    first: dict[tuple[Any, ...], Run] = {}
    for i, run in enumerate(runs):
        if run.state == "finished":
            earlier = first.setdefault((*identity(run), run.seed), run)
            if earlier is not run:  # counting both would turn one seed into two
                runs[i] = replace(run, state="duplicate", reason=f"the same configuration and seed as {earlier.name}")
    return runs


def identity(run: Run) -> tuple[str, ...]:
    """The properties that runs must share before their scores are averaged, since renaming a folder can give different
    runs the same name."""
    values = (text(run.summary.get(key)) for key in ("method", "model", "task", "targets", "arm"))
    return (run.configuration, *values, run.summary["metric"]["name"], run.score[0])


def state_counts(runs: Sequence[Run]) -> str:
    """Example: `6 finished, 1 failed`."""
    states = [run.state for run in runs]
    order = sorted(set(states), key=lambda state: (state != "finished", state))
    return ", ".join(f"{states.count(state)} {state}" for state in order)


def run_state(status: Mapping[str, Any], summary: Mapping[str, Any], faults: Sequence[str]) -> tuple[str, str]:
    """A run's state and the reason why it is not counted ("" for a finished run).

    status, summary: the contents of the two files, empty if missing; faults: one per file that cannot be read.
    """
    if faults:
        return "corrupt", "; ".join(faults)
    if not status and not summary:
        return "incomplete", f"it has neither {STATUS} nor {SUMMARY}"
    state = text(status.get("state", summary.get("status")))
    if state == "running":
        return state, f"at step {text(status.get('step'))}, last heartbeat {text(status.get('heartbeat'))}"
    if state != "finished":
        return state, text(status.get("error") or summary.get("error") or "no reason was recorded")
    if not summary:
        return "incomplete", f"it has no {SUMMARY}"
    if summary.get("status") != "finished":
        return "incomplete", f"{STATUS} says finished, {SUMMARY} {text(summary.get('status'))}"
    fault = _summary_fault(summary)
    return ("corrupt", f"{SUMMARY}: {fault}") if fault else ("finished", "")


def read_config(folder: Path) -> dict[str, str] | None:
    """`config.yaml`, flattened to {"train.lr": "0.001"}; None if it is missing or cannot be read.

    `{score: {_target_: package.scores.adalora}}` becomes {"score": "adalora"}.
    """
    settings = run_settings.read(folder)
    return None if settings is None else {key: text(value) for key, value in settings.items()}


def read_counts(path: Path) -> list[dict[str, Any]]:
    """The records of allocations.jsonl up to their key "ranks"; the header and unreadable lines are skipped.

    The modules' ranks make up nearly all of the file, and parsing thousands of files completely would take minutes.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return []
    records = (_parse(line.partition(b', "ranks"')[0] + b"}") or _parse(line) for line in lines if line.endswith(b"}"))
    return [record for record in records if record and "modules" not in record]


def read_measurement(run: Run, name: str, parse: Callable[[Any], T]) -> T | None:
    """The result of `parse` for a JSON file in the run's folder; None if it is missing, damaged or incomplete."""
    try:
        return parse(json.loads((run.folder / name).read_bytes()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def number(value: Any) -> float | None:
    """`value` as a float if it is a finite number, else None."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def finite(value: Any) -> float:
    """`value` as a float. Raises ValueError unless it is a finite number."""
    if (result := number(value)) is None:
        raise ValueError(f"not a finite number: {value}")
    return result


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the known values, None if there are none."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in FILES)


def _run_folders(folder: Path) -> Iterator[Path]:
    """Run folders under `folder`; links are followed, and each folder is read once."""
    seen = {os.path.realpath(folder)}
    waiting = [folder]
    while waiting:
        parent = waiting.pop()
        for entry in os.scandir(parent):
            if entry.name.startswith(".") or not entry.is_dir() or (parent == folder and entry.name == "report"):
                continue
            real = os.path.realpath(entry.path)
            if real in seen:
                continue
            seen.add(real)
            path = Path(entry.path)
            if _is_run(path) or RUN_NAME.fullmatch(entry.name):
                yield path
            else:
                waiting.append(path)


def _read_run(folder: Path, out: Path, checkpoint: str) -> Run:
    status, status_fault = read_object(folder / STATUS)
    summary, summary_fault = read_object(folder / SUMMARY)
    state, reason = run_state(status, summary, [fault for fault in (status_fault, summary_fault) if fault])
    seed_in_name = SEED.search(folder.name)
    seed = summary.get("seed", int(seed_in_name[1]) if seed_in_name else None)
    if state == "finished" and not isinstance(seed, int):
        state, reason = "corrupt", f"{SUMMARY}: seed is missing"
    return Run(
        folder=folder,
        name=folder.relative_to(out).as_posix(),
        configuration=SEED.sub("", folder.name),
        seed=seed if isinstance(seed, int) else -1,
        state=state,
        reason=reason,
        summary=summary,
        checkpoint=checkpoint,
    )


def _summary_fault(summary: Mapping[str, Any]) -> str:
    """Why a finished run's summary cannot be counted, "" if it can."""
    for key in ("method", "model", "task"):
        if not isinstance(summary.get(key), str):
            return f"{key} is missing"
    for key in ("metric", "rank", "parameters", "time", "memory"):
        if not isinstance(summary.get(key) or {}, dict):
            return f"{key} is not an object"
    metric = summary.get("metric") or {}
    if not isinstance(metric.get("name"), str):
        return "metric.name is missing"
    for key in ("best", "last", "test", "test_last", "majority"):
        if metric.get(key) is not None and number(metric[key]) is None:
            return f"metric.{key} is not a number"
    if metric.get("test") is None and metric.get("last") is None:
        return "it has neither metric.test nor metric.last"
    final = (summary.get("rank") or {}).get("final") or {}
    if not isinstance(final, dict) or any(number(rank) is None for rank in final.values()):
        return "rank.final is not an object of numbers"
    return ""


def _parse(line: str | bytes) -> dict[str, Any] | None:
    """The JSON object on a line, None if there is none."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
