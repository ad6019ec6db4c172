"""One process a run: a lock that survives kill -9 and works on a shared file system.

Whoever creates `.lock.1` in the run's folder holds it; creation with O_EXCL is atomic, on NFS too. Where the holder of
`.lock.n` is dead, whoever creates `.lock.n+1` takes over, so that two who find the same corpse cannot both succeed.
Corpses stay: removing them could hide a living lock from somebody who reads the folder just then. The holder touches its file every few seconds: a holder on another host is dead when its file grew old, by the file system's
own clock; one on this host, when its process (by number and start) is gone.
"""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adarank.errors import RunFailed

OLD = 120.0  # seconds without a touch after which a holder on another host counts as dead


class Held(RunFailed):
    """Somebody else is at it."""


@contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """Hold the lock of `folder` (which exists); yields its file, to be touched. Raises Held where a live process has it."""
    path = _acquire(folder)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _acquire(folder: Path) -> Path:
    while True:
        last = _last(folder)
        if last is not None:
            try:
                found = _holder(last)
            except FileNotFoundError:
                continue  # let go just now: the number after it is nobody's to take, look again
            if found is not None:
                raise _held(folder, found)
        # The number follows from the very listing that was judged: of those who saw the same corpse, one creates it.
        path = folder / f".lock.{_number(last) + 1 if last else 1}"
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            continue  # somebody was faster: look again
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump({"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}, file)
        return path


def refuse_held(folder: Path) -> None:
    """Raise Held where a live process holds the lock of `folder`."""
    if (found := holder(folder)) is not None:
        raise _held(folder, found)


def holder(folder: Path) -> dict[str, Any] | None:
    """host and pid of the live process that holds the lock of `folder`, None where nobody does."""
    last = _last(folder)
    try:
        return None if last is None else _holder(last)
    except FileNotFoundError:
        return None  # let go between the two looks


def _held(folder: Path, found: dict[str, Any]) -> Held:
    return Held(f"{folder} is being trained by process {found['pid']} on {found['host']}; wait for it")


def _last(folder: Path) -> Path | None:
    """The lock file of the highest number."""
    return max(folder.glob(".lock.*"), key=_number, default=None)


def _number(path: Path) -> int:
    return int(path.suffix[1:])


def _holder(path: Path) -> dict[str, Any] | None:
    """What a lock's file says of its holder, None where the holder is dead. Raises FileNotFoundError where it is gone."""
    try:
        age = _now(path.parent) - path.stat().st_mtime
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        # created and not yet written, or its writer died in between
        return {"pid": "unknown", "host": "unknown"} if age < OLD else None
    if found["host"] != socket.gethostname():
        return found if age < OLD else None  # type: ignore[no-any-return]
    return found if is_alive(found["pid"], found["started"]) else None


def is_alive(pid: int, started: str | None) -> bool:
    """Whether process `pid` of this host is there and, where /proc tells, is the one that began at `started`."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return started is None or _started(pid) == started


def _started(pid: int) -> str | None:
    """When a process began, in the kernel's ticks; None where /proc does not tell. A zombie has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return "ended" if stat[0] in "ZX" else stat[19]


def _now(folder: Path) -> float:
    """The time by the clock of the file system that `folder` is on."""
    probe = folder / f".clock.{socket.gethostname()}.{os.getpid()}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
