"""The progress of a sweep: the jobs that have ended, a bar over the steps of all jobs, and the time left.

A running job names its run's folder in the sweep's folder; that run's status.json, which the heartbeat updates every
five seconds, says how many steps it has done. The parent thus sees all jobs, whatever process or machine they run on.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from adarank.runs.files import read_json, read_object
from adarank.runs.state import read_status
from adarank.runs.status import duration

PLAN = "sweep.json"  # in the sweep's folder: the number of jobs, when they began, and whether a failure stops them
PARTS = 20  # a sweep prints its progress at least this often
PAUSE = 2.0  # seconds between two looks at the jobs
WIDTH = 20  # characters of the bar
STEPS = 0.95  # the steps' share of a job; evaluation and saving follow the last step


@dataclass(frozen=True)
class Progress:
    """jobs: the number planned (None: a search decides during the sweep); ended, failed: how many of them have; share:
    the fraction of all jobs' steps that is done, from 0 to 1; left: the seconds that the rest needs at the speed so
    far, None before the first step."""

    jobs: int | None
    ended: int
    failed: int
    share: float
    left: float | None


def measure(folder: Path) -> Progress:
    """The progress of the sweep with this folder. Raises OSError if the sweep has ended and removed it."""
    plan, results = read_json(folder / PLAN), list(result_files(folder))
    failed = sum(read_object(file)[0].get("status") != 0 for file in results)
    runs = {int(file.stem.removeprefix("run")): file for file in folder.glob("run*.txt")}
    ended = {int(file.stem) for file in results}
    done, trained = float(len(ended)), 0.0  # in jobs; a job that had finished before took no time
    for job, file in runs.items():
        status = read_status(Path(file.read_text(encoding="utf-8")))
        if steps := status.get("steps"):
            now = 1.0 if job in ended else STEPS * status["step"] / steps
            done += 0 if job in ended else now
            trained += now - STEPS * status.get("started_step", 0) / steps
    jobs = plan["jobs"]
    left = (time.time() - plan["began"]) * (jobs - done) / trained if jobs and trained else None
    return Progress(jobs, len(ended), failed, min(1.0, done / jobs) if jobs else 0.0, left)


def line(progress: Progress, stops: bool = False) -> str:
    """`sweep: 2 of 6 jobs done, 1 failed  [######--------------] 34 %, about 4 min 10 s left`. stops: whether a failure
    prevents further jobs from starting."""
    text = f"sweep: {progress.ended}" + (f" of {progress.jobs}" if progress.jobs else "") + " jobs done"
    if progress.failed:
        text += f", {progress.failed} failed" + "; fail_fast=true stops the sweep" * stops
    if not progress.jobs or progress.ended == progress.jobs or (progress.failed and stops):
        return text
    full = int(WIDTH * progress.share)
    left = "" if progress.left is None else f", about {duration(progress.left)} left"
    return f"{text}  [{'#' * full}{'-' * (WIDTH - full)}] {100 * progress.share:.0f} %{left}"


def result_files(folder: Path) -> Iterator[Path]:
    """The result files of the jobs that have ended."""
    return folder.glob("[0-9]*.json")


def watch(folder: Path, pause: float = PAUSE) -> None:
    """Print a line whenever another twentieth of the sweep is done, until its folder is removed. A job prints its own
    line when it ends."""
    from tqdm import tqdm

    before = Progress(None, 0, 0, 0.0, None)
    while True:
        time.sleep(pause)
        try:
            now = measure(folder)
        except OSError:
            return
        if is_news(now, before):
            with tqdm.external_write_mode():  # a run's own bar in this process moves down
                print(f"{line(now)}\n", end="", flush=True)
        before = now


def is_news(now: Progress, before: Progress) -> bool:
    """Whether another twentieth is done and no job has ended in the meantime, because that job printed a line."""
    return now.ended == before.ended and int(PARTS * now.share) > int(PARTS * before.share)
