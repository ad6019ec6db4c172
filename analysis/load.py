"""Run folders to `Run`s. What cannot be counted is kept too, with its reason."""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

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


def number(value: Any) -> float | None:
    """`value` as a float when it is a finite number, else None."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


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
    status, status_fault = _read_object(folder / "status.json")
    summary, summary_fault = _read_object(folder / "summary.json")
    state, reason = _state(status, summary, [fault for fault in (status_fault, summary_fault) if fault])
    named = SEED.search(folder.name)
    seed = summary.get("seed", int(named[1]) if named else None)
    if state == "finished" and not isinstance(seed, int):
        state, reason = "corrupt", "summary.json: seed is missing"
    return Run(
        folder=folder,
        name=folder.relative_to(out).as_posix(),
        configuration=SEED.sub("", folder.name),
        seed=seed if isinstance(seed, int) else -1,
        state=state,
        reason=reason,
        summary=summary,
    )


def _state(status: dict[str, Any], summary: dict[str, Any], faults: list[str]) -> tuple[str, str]:
    """The state and the reason why the run is not counted ("" for a finished one)."""
    if faults:
        return "corrupt", "; ".join(faults)
    if not status and not summary:
        return "incomplete", "it has neither status.json nor summary.json"
    state = text(status.get("state", summary.get("status")))
    if state == "running":
        return state, f"at step {text(status.get('step'))}, last heartbeat {text(status.get('heartbeat'))}"
    if state != "finished":
        return state, text(status.get("error") or summary.get("error") or "no reason was recorded")
    if not summary:
        return "incomplete", "it has no summary.json"
    if summary.get("status") != "finished":
        return "incomplete", f"status.json says finished, summary.json {text(summary.get('status'))}"
    fault = _fault(summary)
    return ("corrupt", f"summary.json: {fault}") if fault else ("finished", "")


def _fault(summary: dict[str, Any]) -> str:
    """What keeps a finished run's summary from being counted, "" when nothing does."""
    for key in ("method", "model", "task"):
        if not isinstance(summary.get(key), str):
            return f"{key} is missing"
    for key in ("metric", "rank", "parameters", "time", "memory"):
        if not isinstance(summary.get(key) or {}, dict):
            return f"{key} is not an object"
    metric = summary.get("metric") or {}
    if not isinstance(metric.get("name"), str):
        return "metric.name is missing"
    for key in ("best", "last", "test"):
        if metric.get(key) is not None and number(metric[key]) is None:
            return f"metric.{key} is not a number"
    if metric.get("test") is None and metric.get("last") is None:
        return "it has neither metric.test nor metric.last"
    final = (summary.get("rank") or {}).get("final") or {}
    if not isinstance(final, dict) or any(number(rank) is None for rank in final.values()):
        return "rank.final is not an object of numbers"
    return ""


def _read_object(path: Path) -> tuple[dict[str, Any], str]:
    """A JSON object and the fault found ("" when it is there or missing altogether)."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}, ""
    except (OSError, ValueError):
        return {}, f"{path.name} cannot be read"
    return (value, "") if isinstance(value, dict) else ({}, f"{path.name} is not an object")


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif key == "_target_":
            yield prefix.removesuffix(".") or key, text(value).rpartition(".")[2]
        else:
            yield f"{prefix}{key}", text(value)
