"""The results of a sweep's jobs, wherever they run: each job writes a small file in OUT/.sweep/ID for the parent to
read.

Launchers run jobs in other processes and on other machines, so results cannot return through memory. Jobs learn the
folder's name from the environment variable ADARANK_SWEEP.
"""

import math
import os
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Sweep
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from adarank.errors import SettingError
from adarank.harness.config.validate import typed_keys
from adarank.harness.progress import PLAN, line, measure, result_files, watch
from adarank.runs.files import read_json, write_json, write_text

FOLDER = "ADARANK_SWEEP"
RESULT = "ADARANK_RESULT"  # names the file to which a job that was started as a separate command writes its result


class Stopped(BaseException):
    """fail_fast=true ended the sweep after a failure. Not an Exception, because Hydra catches those of a job."""


class Begin(Callback):  # type: ignore[misc]
    """Hydra's hook at the start of a sweep, in the parent process: creates the folder, tells the jobs its name, says
    what will run, and prints the progress from then on."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        out = Path(config.out).expanduser().absolute()
        folder = out / ".sweep" / uuid.uuid4().hex[:12]
        try:
            folder.mkdir(parents=True)
        except OSError:
            return  # every job will say that out=… cannot be written
        sweeper = config.hydra.sweeper
        params = sweeper.get("params") or {}
        words = [*(f"{key}={value}" for key, value in params.items()), *config.hydra.overrides.task]
        jobs = None if "n_trials" in sweeper else count_jobs(words)  # Optuna decides as it goes
        write_json(folder / PLAN, {"jobs": jobs, "fail_fast": bool(config.fail_fast), "began": time.time()})
        os.environ[FOLDER] = str(folder)
        if jobs:
            print(f"sweep of {jobs} job{'s' * (jobs > 1)}: {' '.join(swept(words))} -> {config.out}", flush=True)
            threading.Thread(target=watch, args=(folder,), daemon=True).start()


def count_jobs(words: Sequence[str]) -> int | None:
    """The number of jobs in a sweep over `words` (key=a,b key=range(1,9) …); None for a glob."""
    sweeps = _sweeps(words)
    if not all(isinstance(o.value(), Sweep) for o in sweeps):
        return None
    return math.prod(sum(1 for _ in o.sweep_string_iterator()) for o in sweeps)


def swept(words: Sequence[str]) -> list[str]:
    """The words that give a setting several values, as they were typed."""
    return [o.input_line or o.get_key_element() for o in _sweeps(words)]


def _sweeps(words: Sequence[str]) -> list[Override]:
    overrides: list[Override] = OverridesParser.create().parse_overrides(list(words))
    last = {o.key_or_group: o for o in overrides}  # of two words for one setting the last one counts
    return [o for o in last.values() if o.is_sweep_override()]


def refuse_unswept(hydra_config: DictConfig, in_sweep: bool) -> None:
    """Raise SettingError for an experiment whose sweep (hydra.sweeper.params) Hydra would ignore: without -m it ignores
    any sweep, and of several experiments it uses the sweep of one only."""
    swept = hydra_config.sweeper.get("params") or {}
    given = typed_keys(hydra_config.overrides.task)
    left = [key for key in swept if key not in given]
    if left and "experiment" in given:
        name = hydra_config.runtime.choices.experiment
        how = "run one experiment at a time" if in_sweep else f"add -m, or choose one value with {left[0]}=VALUE"
        raise SettingError(f"experiment={name} is a sweep over {', '.join(swept)}; {how}")


@dataclass(frozen=True)
class Result:
    """How a job ended: its exit status, and the error in one line."""

    job: int
    overrides: str
    status: int
    error: str | None


def write_job_folder(job: int, folder: Path) -> None:
    """Record the folder of a job's run, from which the parent reads its progress. Does nothing outside a sweep, and the
    run does not depend on it."""
    place = Path(os.environ.get(FOLDER, ""))
    if FOLDER in os.environ and place.is_dir():
        with suppress(OSError):
            write_text(place / f"run{job}.txt", str(folder.absolute()))


def write_job_result(job: int, overrides: Sequence[str], status: int, error: str | None) -> None:
    """Record how a job ended and print the progress of the sweep. Does nothing outside a sweep or after its parent has
    ended."""
    folder = Path(os.environ.get(FOLDER, ""))
    if FOLDER not in os.environ or not folder.is_dir():
        return
    try:
        write_json(folder / f"{job}.json", {"overrides": " ".join(overrides), "status": status, "error": error})
    except OSError as fault:  # the job's own error has been printed; the summary will report the missing result
        print(f"error: {fault.filename} cannot be written ({fault.strerror})", file=sys.stderr, flush=True)
    progress()


def is_stopped() -> bool:
    """Whether fail_fast=true and a failure keep further jobs of this process's sweep from starting."""
    folder = Path(os.environ.get(FOLDER, ""))
    if FOLDER not in os.environ or not folder.is_dir():
        return False
    return read_json(folder / PLAN)["fail_fast"] and any(result.status != 0 for result in results(folder))


def job_return(overrides: Sequence[str], value: float | None = None) -> JobReturn:
    """The return value of a launcher for a job in another process. value: its best dev metric, or None."""
    result = JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED)
    result.return_value = value
    return result


def write_objective(best: float | None, error: str | None) -> None:
    """Write the result of this process to the file that its parent named (RESULT)."""
    if RESULT in os.environ and os.environ.get("RANK", "0") == "0":
        write_json(Path(os.environ[RESULT]), {"best": best, "error": error})


def progress(job: int | None = None) -> None:
    """Print the progress of the sweep, and the error of `job`, which ran in another process."""
    folder = Path(os.environ[FOLDER])
    plan, found = read_json(folder / PLAN), results(folder)
    for result in found:
        if result.job == job and result.error:
            print(f"error: {result.error}", file=sys.stderr, flush=True)
    print(f"{line(measure(folder), stops=plan['fail_fast'])}\n", end="", flush=True)


def results(folder: Path) -> list[Result]:
    """The results so far, sorted by job number."""
    found = [Result(int(path.stem), **read_json(path)) for path in result_files(folder)]
    return sorted(found, key=lambda r: r.job)


def collect_results() -> tuple[list[Result], int | None]:
    """Return (results, number of planned jobs or None) of this process's sweep, and remove its folder."""
    named = os.environ.pop(FOLDER, None)
    if named is None:
        return [], None
    folder = Path(named)
    total, found = read_json(folder / PLAN)["jobs"], results(folder)
    shutil.rmtree(folder)
    with suppress(OSError):  # another sweep is still there, or, under torchrun, another rank was faster
        folder.parent.rmdir()
    return found, total


def summary(found: Sequence[Result], total: int | None) -> list[str]:
    """One line per failed job, then a line with the number of jobs that wrote no result."""
    failed = [r for r in found if r.status != 0]
    lines = [f"job {r.job} ({r.overrides}): {r.error or f'exit status {r.status}'}" for r in failed]
    if failed:
        lines.insert(0, f"{len(failed)} of {total or len(found)} jobs failed:")
    if total is not None and len(found) < total:
        lines.append(f"{total - len(found)} of {total} jobs did not finish; run the same command again to run them")
    return lines
