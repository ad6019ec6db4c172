"""The state of a run: status.json, and the decision whether to start, skip or resume the run."""

import logging
import os
import shutil
import socket
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from adarank.errors import RunFailed, SettingError
from adarank.runs import files
from adarank.runs.files import STATUS, SUMMARY, read_object, write_json

logger = logging.getLogger(__name__)

FILES = (
    files.CONFIG,
    files.METRICS,
    files.ALLOCATIONS,
    SUMMARY,
    STATUS,
    files.PREDICTIONS,
    files.UNLABELLED,
    files.TRACEBACK,
)
FOLDERS = (files.CHECKPOINT, files.ADAPTER, files.WANDB)
BEAT = 5.0  # seconds between heartbeats


def read_status(folder: Path) -> dict[str, Any]:
    """status.json, {} if it is missing or damaged."""
    return read_object(folder / STATUS)[0]


def is_finished(folder: Path, force: bool, retry: str) -> bool:
    """Whether `folder` holds the finished run. Raises RunFailed if the run failed before and neither `force` nor
    retry="failed" asks to run it again."""
    if force:
        return False
    status = read_status(folder)
    state = status.get("state")
    if state in ("failed", "diverged") and retry != "failed":
        raise RunFailed(f"{folder} {state} before ({status.get('error')}); retry=failed runs it again")
    return state == "finished" and (folder / SUMMARY).is_file()


def is_resumable(folder: Path) -> bool:
    """Whether the run resumes from its checkpoint because its process ended without finishing or the run failed. A run
    that diverged would diverge again. Only the holder of the lock may decide this."""
    return read_status(folder).get("state") in ("running", "failed")


def make_folder(folder: Path) -> None:
    """Create the run's folder. Raises SettingError if it cannot be created."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder.parent, error) from None


def clean(folder: Path) -> None:
    """Remove from the run's folder what an earlier attempt was writing when it was killed, and its traceback. Only the
    holder of the lock may do this."""
    for path in [folder / files.TRACEBACK, *files.leftovers(folder)]:
        path.unlink(missing_ok=True)


def begin(folder: Path) -> None:
    """Remove the files of an earlier attempt from the run's folder; keep everything else in it."""
    try:
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        for name in FOLDERS:
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
        write_status(folder, "running", 0)
    except OSError as error:
        raise unwritable(folder.parent, error) from None


def unwritable(out: Path | str, error: OSError) -> SettingError:
    """The error for an `out` folder that cannot be created or written to."""
    return SettingError(f"out={out} cannot be written ({error.strerror}); choose a folder that you can write to")


def check_writable(out: str) -> None:
    """Raise SettingError if `out` cannot be created or written to. Leaves nothing behind."""
    existing = _existing(Path(out).expanduser())
    if not existing.is_dir():
        raise SettingError(f"out={out} cannot be written ({existing} is a file); choose a folder that you can write to")
    probe = existing / f".adarank-{os.getpid()}.tmp"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise unwritable(out, error) from None


def check_space(out: str, folder: Path, needed: Mapping[str, int]) -> None:
    """Raise SettingError if the disk of `out` lacks space for the files that a run in `folder` will save.

    needed: {name: bytes at most}. Files that an earlier attempt left in the folder count as free space, since they are
    replaced.
    """
    there = sum(file.stat().st_size for name in needed for file in (folder / name).rglob("*") if file.is_file())
    free = shutil.disk_usage(_existing(folder)).free
    if sum(needed.values()) > free + there:
        parts = " and ".join(f"{size / 2**20:,.1f} MiB for {name}/" for name, size in needed.items() if size)
        raise SettingError(
            f"out={out} has {free / 2**20:,.1f} MiB free, but the run saves up to {parts}; free some space, choose "
            "another folder, or disable checkpoints with checkpoint_seconds=null"
        )


def _existing(path: Path) -> Path:
    """The path, or the nearest of its parents that exists."""
    path = path.absolute()
    return next(p for p in (path, *path.parents) if p.exists())


def write_status(folder: Path, state: str, step: int, error: str | None = None, **more: Any) -> None:
    """Replace status.json. The heartbeat is the current time in UTC; more: further fields."""
    process = {"host": socket.gethostname(), "pid": os.getpid(), "heartbeat": _now()}
    write_json(folder / STATUS, {"state": state, **process, "step": step, "error": error, **more})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class Heartbeat:
    """A thread that refreshes status.json every BEAT seconds, however long a step or an evaluation takes.

    `beat(step)` records the progress of the run, and `end(state, error)` writes its final state.
    """

    def __init__(self, folder: Path, lock: Path | None, step: int = 0, steps: int = 0) -> None:
        """lock: the lock file, touched at every beat, or None if the kernel holds the lock; step, steps: the run's
        first and last step, from which `adarank status` estimates the time left."""
        self.folder, self.lock, self.step = folder, lock, step
        self._more: dict[str, Any] = {"steps": steps, "started": _now(), "started_step": step}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Heartbeat":
        write_status(self.folder, "running", self.step, **self._more)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def beat(self, step: int) -> None:
        self.step = step

    def end(self, state: str, error: str | None = None) -> None:
        self._stop()
        write_status(self.folder, state, self.step, error, **self._more)

    def _stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(BEAT):
            try:
                if self.lock is not None:
                    self.lock.touch()
                write_status(self.folder, "running", self.step, **self._more)
            except OSError as error:
                logger.warning("%s: no heartbeat (%s); the run continues", self.folder, error.strerror)


def warn_if_other_code(folder: Path, commit: str | None) -> None:
    """Print a note if another commit made the finished run that is about to be skipped."""
    made_by = read_object(folder / SUMMARY)[0].get("commit")
    if made_by and commit and made_by != commit:
        made = f"{folder.name} was made by commit {made_by[:10]}, but this is commit {commit[:10]}"
        print(f"note: {made}; force=true runs it again", file=sys.stderr)
