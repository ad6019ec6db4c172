"""Run folders to `Run`s. What cannot be counted is kept too, with its reason."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from analysis.files import number, read_object, text
from analysis.states import state

FILES = ("status.json", "summary.json", "config.yaml", "metrics.jsonl", "allocations.jsonl")
NAMED_AS_RUN = re.compile(r".+-[0-9a-f]{6,}-s\d+")  # <method>-<hash>-s<seed>: a run that died before its first file
SEED = re.compile(r"-s(\d+)$")


class FolderError(ValueError):
    """A folder that cannot be analysed; the message is one sentence."""


@dataclass(frozen=True)
class Run:
    """One run folder.

    name: its path below the folder that was read, with forward slashes; configuration: the folder's name without
    `-s<seed>`, shared by the seeds of one configuration; state: "finished" (then `summary` is complete enough to be
    counted), or "failed", "diverged", "running", "incomplete", "corrupt", "duplicate" with the reason in `reason`;
    seed: -1 when there is none (never in a finished run).
    """

    folder: Path
    name: str
    configuration: str
    seed: int
    state: str
    reason: str = ""
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def score(self) -> tuple[str, float]:
        """The split and the value that a finished run is judged by: metric.test, or metric.last (dev) without one."""
        metric = self.summary["metric"]
        test = number(metric.get("test"))
        return ("dev", float(metric["last"])) if test is None else ("test", test)


def read_runs(out: Path) -> list[Run]:
    """Every run folder below `out`, at any depth, sorted by name; only summaries and states are read.

    Raises FolderError when `out` is not a folder or holds no run folder.
    """
    if not out.is_dir():
        raise FolderError(f"{out} is not a folder; give the folder that holds the run folders.")
    if _is_run(out):
        raise FolderError(f"{out} is itself a run folder; give the folder that holds it.")
    runs = sorted((_read_run(folder, out) for folder in _run_folders(out)), key=lambda run: run.name)
    if not runs:
        raise FolderError(f"{out} holds no run folder.")
    first: dict[tuple[Any, ...], Run] = {}
    for place, run in enumerate(runs):
        if run.state == "finished":
            earlier = first.setdefault((*identity(run), run.seed), run)
            if earlier is not run:  # counted twice, one seed would pass for two
                runs[place] = replace(
                    run, state="duplicate", reason=f"the same configuration and seed as {earlier.name}"
                )
    return runs


def identity(run: Run) -> tuple[str, ...]:
    """What runs must share for their scores to be averaged. A renamed folder can bring unlike runs under one name."""
    names = (text(run.summary.get(key)) for key in ("method", "model", "task", "targets"))
    return (run.configuration, *names, run.summary["metric"]["name"], run.score[0])


def state_counts(runs: Sequence[Run]) -> str:
    """`6 finished, 1 failed`."""
    states = [run.state for run in runs]
    order = sorted(set(states), key=lambda one: (one != "finished", one))
    return ", ".join(f"{states.count(one)} {one}" for one in order)


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in FILES)


def _run_folders(folder: Path) -> Iterator[Path]:
    """Run folders below `folder`; linked folders are followed, once each."""
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
            if _is_run(path) or NAMED_AS_RUN.fullmatch(entry.name):
                yield path
            else:
                waiting.append(path)


def _read_run(folder: Path, out: Path) -> Run:
    status, status_fault = read_object(folder / "status.json")
    summary, summary_fault = read_object(folder / "summary.json")
    found, reason = state(status, summary, [fault for fault in (status_fault, summary_fault) if fault])
    named = SEED.search(folder.name)
    seed = summary.get("seed", int(named[1]) if named else None)
    if found == "finished" and not isinstance(seed, int):
        found, reason = "corrupt", "summary.json: seed is missing"
    return Run(
        folder=folder,
        name=folder.relative_to(out).as_posix(),
        configuration=SEED.sub("", folder.name),
        seed=seed if isinstance(seed, int) else -1,
        state=found,
        reason=reason,
        summary=summary,
    )
