"""A run's identity, its folder and its status."""

import hashlib
import json
import logging
import os
import platform
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from adarank.errors import RunFailed, SettingError
from adarank.harness.files import write_json

logger = logging.getLogger(__name__)

RECIPE = 1  # bump by hand when the same settings give other results
FILES = ("config.yaml", "metrics.jsonl", "allocations.jsonl", "summary.json", "status.json")
FOLDERS = ("checkpoint", "adapter", "wandb")
BEAT = 5.0  # seconds between heartbeats


def digest(consumers: Mapping[str, Any]) -> str:
    """Ten hex digits of the SHA-256 of the canonical JSON of everything that decides a result, but the seed."""
    canonical = json.dumps({**consumers, "recipe": RECIPE}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:10]


def run_folder(out: str, method: str, consumers: Mapping[str, Any], seed: int) -> Path:
    return Path(out).expanduser() / f"{method}-{digest(consumers)}-s{seed}"


def read_status(folder: Path) -> dict[str, Any]:
    """status.json, or {} where there is none to read."""
    try:
        status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def is_finished(folder: Path, force: bool, retry: str) -> bool:
    """Whether `folder` holds the finished run. Raises RunFailed where it failed before and neither `force` nor
    retry="failed" asks for another try."""
    status = read_status(folder)
    state = status.get("state")
    if force:
        return False
    if state in ("failed", "diverged") and retry != "failed":
        raise RunFailed(f"{folder} {state} before ({status.get('error')}); retry=failed runs it again")
    return state == "finished" and (folder / "summary.json").is_file()


def is_interrupted(folder: Path) -> bool:
    """Whether a run was going on here when its process ended (with the lock held, it is not going on now)."""
    return read_status(folder).get("state") == "running"


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder.parent, error) from None


def begin(folder: Path) -> None:
    """Empty the run's folder of an earlier attempt's files; nothing else in it is touched."""
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
    return SettingError(f"out={out} cannot be written ({error.strerror}); valid: a folder that can be made and written")


def check_writable(out: str) -> None:
    """Raise SettingError where `out` cannot be made or written; leaves nothing behind that was not there."""
    path = Path(out).expanduser().absolute()
    existing = next(p for p in (path, *path.parents) if p.exists())
    if not existing.is_dir():
        raise SettingError(
            f"out={out} cannot be written ({existing} is a file); valid: a folder that can be made and written"
        )
    probe = existing / f".adarank-{os.getpid()}.tmp"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise unwritable(out, error) from None


def write_status(folder: Path, state: str, step: int, error: str | None = None, **more: Any) -> None:
    """status.json, replaced whole; heartbeat is now, in UTC."""
    status = {
        "state": state,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "heartbeat": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": step,
        "error": error,
    }
    write_json(folder / "status.json", {**status, **more})


class Heartbeat:
    """While open, a thread refreshes status.json and touches the lock's file every BEAT seconds, however long a step or
    an evaluation takes. `beat(step)` says where the run stands, `end(state, error)` writes the last word."""

    def __init__(self, folder: Path, lock: Path, step: int = 0, steps: int = 0) -> None:
        """step, steps: where the run starts and will end; status.json holds them, so that others can tell when."""
        self.folder, self.lock = folder, lock
        self.step = step
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._more: dict[str, Any] = {"steps": steps, "started": now, "started_step": step}
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
                self.lock.touch()
                write_status(self.folder, "running", self.step, **self._more)
            except OSError as error:
                logger.warning("%s: no heartbeat (%s); the run goes on", self.folder, error.strerror)


def provenance() -> dict[str, Any]:
    """commit and dirty (of the checkout adarank runs from; null outside one), versions."""
    package = Path(__file__).resolve().parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(package), *words], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    tracked = git("ls-files", "--error-unmatch", Path(__file__).name) is not None
    commit = git("rev-parse", "HEAD") if tracked else None
    dirty = bool(git("status", "--porcelain", "--untracked-files=no")) if commit else None
    versions = {"python": platform.python_version()}
    for package_name in ("adarank", "torch", "transformers", "numpy", "hydra-core"):
        try:
            versions[package_name] = version(package_name)
        except PackageNotFoundError:
            versions[package_name] = "not installed"
    return {"commit": commit, "dirty": dirty, "versions": versions}


def warn_if_other_code(folder: Path, commit: str | None) -> None:
    """Say so where the finished run that is about to be skipped was made by another commit."""
    try:
        made_by = json.loads((folder / "summary.json").read_text(encoding="utf-8")).get("commit")
    except (OSError, ValueError):
        return
    if made_by and commit and made_by != commit:
        print(
            f"note: {folder.name} was made by commit {made_by[:10]}, this is {commit[:10]}; force=true runs it again",
            file=sys.stderr,
        )
