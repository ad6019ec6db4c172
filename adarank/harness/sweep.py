"""What becomes of the jobs of a sweep, wherever they run: one small file a job under OUT/.sweep/ID, read by the parent.

Launchers run jobs in processes of their own (on other machines, too), so that nothing comes back through memory. The
folder's name reaches the jobs in the variable ADARANK_SWEEP.
"""

import json
import math
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Sweep
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from adarank.harness.files import write_json

FOLDER = "ADARANK_SWEEP"


class Begin(Callback):  # type: ignore[misc]
    """Hydra's hook at the start of a sweep, in the parent process: make the folder and name it."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        out = Path(config.out).expanduser().absolute()
        folder = out / ".sweep" / uuid.uuid4().hex[:12]
        try:
            folder.mkdir(parents=True)
        except OSError:
            return  # every job will say that out=… cannot be written
        params = config.hydra.sweeper.get("params") or {}
        words = [*config.hydra.overrides.task, *(f"{key}={value}" for key, value in params.items())]
        write_json(folder / "sweep.json", {"jobs": count_jobs(words)})
        os.environ[FOLDER] = str(folder)


def count_jobs(words: Sequence[str]) -> int | None:
    """The number of jobs that a sweep over `words` (key=a,b key=range(1,9) …) makes; None for a glob."""
    overrides: list[Override] = OverridesParser.create().parse_overrides(list(words))
    sweeps = [o for o in overrides if o.is_sweep_override()]
    if not all(isinstance(o.value(), Sweep) for o in sweeps):
        return None
    return math.prod(sum(1 for _ in o.sweep_string_iterator()) for o in sweeps)


@dataclass(frozen=True)
class Result:
    """How a job ended: its exit status, and the error in a line."""

    job: int
    overrides: str
    status: int
    error: str | None


def tell(job: int, overrides: Sequence[str], status: int, error: str | None) -> None:
    """Write down how a job ended, and print how far the sweep has come; nothing outside a sweep."""
    if FOLDER not in os.environ:
        return
    folder = Path(os.environ[FOLDER])
    write_json(folder / f"{job}.json", {"overrides": " ".join(overrides), "status": status, "error": error})
    total = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["jobs"]
    found = results(folder)
    failed = sum(r.status != 0 for r in found)
    of = f" of {total}" if total else ""
    print(f"sweep: {len(found)}{of} jobs done" + (f", {failed} failed" if failed else ""), flush=True)


def results(folder: Path) -> list[Result]:
    """What the jobs have told so far, by number."""
    found = []
    for path in folder.glob("[0-9]*.json"):
        told: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found.append(Result(int(path.stem), told["overrides"], told["status"], told["error"]))
    return sorted(found, key=lambda r: r.job)


def conclude() -> tuple[list[Result], int | None]:
    """(results, number of jobs planned or None) of the sweep of this process; its folder is removed."""
    named = os.environ.pop(FOLDER, None)
    if named is None:
        return [], None
    folder = Path(named)
    found = results(folder)
    total = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["jobs"]
    shutil.rmtree(folder)
    if not any(folder.parent.iterdir()):
        folder.parent.rmdir()
    return found, total


def summary(found: Sequence[Result], total: int | None) -> list[str]:
    """The failures again, a line each, and the jobs that nobody heard of."""
    failed = [r for r in found if r.status != 0]
    lines = [f"job {r.job} ({r.overrides}): {r.error or f'exit status {r.status}'}" for r in failed]
    if failed:
        lines.insert(0, f"{len(failed)} of {total or len(found)} jobs failed:")
    if total is not None and len(found) < total:
        lines.append(
            f"{total - len(found)} of {total} jobs did not end (a worker died, or the launcher gave up); the same "
            "command goes on with them"
        )
    return lines
