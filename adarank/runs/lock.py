"""One process per run: the lock of a run's folder.

On a local file system it is a kernel lock (`flock` on the folder itself), which leaves no file behind and ends with the
process that holds it, even after kill -9. Network file systems lock a folder for one host only (NFS does so silently)
or not at all. There, and on platforms without flock, files serve as the lock:

The process that creates `.lock.1` in the run's folder (with O_EXCL, which is atomic even on NFS) owns the run and
touches the file regularly. If the holder of `.lock.n` is dead, the process that creates `.lock.n+1` takes over, so two
processes that find the same stale lock cannot both take it. Stale files are kept, because removing one could hide a
live lock from a process that is listing the folder. A holder on another host counts as dead once its file is old by the
file system's own clock; a holder on this host, once its process (identified by id and start time) is gone.
"""

import errno
import json
import os
import random
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from adarank.errors import RunFailed
from adarank.runs.files import STATUS, read_object

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

STALE_AFTER = 120.0  # seconds without a touch after which a holder on another host counts as dead
LOCAL = {"apfs", "bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "ramfs", "tmpfs", "xfs", "zfs"}
UNSUPPORTED = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.EBADF}
_descriptors: set[int] = set()  # of folders that this process has locked


class RunLocked(RunFailed):
    """Another process is training the run."""


@contextmanager
def locked(folder: Path) -> Iterator[Path | None]:
    """Hold the lock of `folder`, which must exist. Raises RunLocked if this or another process holds it already.

    Yields the file that must be touched every few seconds to keep the lock, or None if the kernel holds the lock.
    """
    descriptor = _lock_folder(folder)
    path = _create_lock_file(folder) if descriptor is None else None
    try:
        yield path
    finally:
        if descriptor is not None:
            _release(descriptor)
        if path is not None:
            path.unlink(missing_ok=True)


@contextmanager
def waiting_for(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder` for less than STALE_AFTER, as soon as no other thread or process holds it."""
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(folder))
                break
            except RunLocked:
                time.sleep(random.uniform(0.01, 0.05))
        yield


def holder(folder: Path) -> dict[str, Any] | None:
    """{"pid", "host"} of the live process that holds the lock of `folder`, or None if there is no such process.

    Both are None if it has not written its status yet. This check never prevents a run from starting.
    """
    try:
        descriptor = _flock(folder, shared=True)
    except BlockingIOError:
        status, _ = read_object(folder / STATUS)
        known = status.get("state") == "running"  # otherwise an earlier process wrote the status
        return {key: status.get(key) if known else None for key in ("pid", "host")}
    except FileNotFoundError:
        return None  # the run has no folder yet
    if descriptor is not None:
        _release(descriptor)
        return None
    last = _last_lock_file(folder)
    try:
        return None if last is None else _holder_of(last)
    except FileNotFoundError:
        return None  # released between the two reads


def refuse_locked(folder: Path) -> None:
    """Raise RunLocked if a live process holds the lock of `folder`."""
    if (found := holder(folder)) is not None:
        raise _run_locked(folder, found)


def _run_locked(folder: Path, found: dict[str, Any]) -> RunLocked:
    process = "another process" if found["pid"] is None else f"process {found['pid']} on {found['host']}"
    return RunLocked(f"{folder} is being trained by {process}")


def _lock_folder(folder: Path) -> int | None:
    """The open descriptor of the locked folder, or None if the kernel cannot lock it."""
    while True:
        try:
            return _flock(folder, shared=False)
        except BlockingIOError:
            refuse_locked(folder)
            time.sleep(random.uniform(0.001, 0.01))  # it was a check by `holder`, which releases its lock at once


def _flock(folder: Path, shared: bool) -> int | None:
    """The descriptor of the folder under flock; None if flock is unsupported. Raises BlockingIOError if it is taken."""
    if fcntl is None or not _is_local(folder):
        return None
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)  # closed on exec, like all of Python's
    _descriptors.add(descriptor)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        _descriptors.remove(descriptor)
        os.close(descriptor)
        if error.errno in UNSUPPORTED:
            return None
        raise
    return descriptor


def _release(descriptor: int) -> None:
    if descriptor in _descriptors:  # not in a forked child, whose copy is closed already
        _descriptors.remove(descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # releases it even if a child about to exec still has a copy
        os.close(descriptor)


def _close_inherited() -> None:
    """Close the descriptors in a forked child (a data worker, say), which must not keep the lock when its parent
    dies."""
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)


def _is_local(folder: Path) -> bool:
    """Whether the folder is on a file system that no other host can mount; True if /proc does not say."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return True
    path, longest, system = folder.resolve(), -1, ""
    for mount in mounts:
        place, _, about = mount.partition(" - ")
        point = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), place.split()[4])
        if len(point) >= longest and path.is_relative_to(point):  # of several mounts at one point, the last one counts
            longest, system = len(point), about.split()[0]
    return system in LOCAL


def _create_lock_file(folder: Path) -> Path:
    while True:
        last = _last_lock_file(folder)
        if last is not None:
            try:
                found = _holder_of(last)
            except FileNotFoundError:
                continue  # released just now; the next number is not ours to take, so list the folder again
            if found is not None:
                raise _run_locked(folder, found)
        # The number follows from the listing just read, so that only one of the processes that saw this lock creates
        # it.
        path = folder / f".lock.{_number(last) + 1 if last else 1}"
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            continue  # another process was faster: list the folder again
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump({"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}, file)
        return path


def _last_lock_file(folder: Path) -> Path | None:
    """The lock file with the highest number."""
    return max(folder.glob(".lock.*"), key=_number, default=None)


def _number(path: Path) -> int:
    return int(path.suffix[1:])


def _holder_of(path: Path) -> dict[str, Any] | None:
    """The content of a lock file, or None if its holder is dead. Raises FileNotFoundError if the file is gone."""
    try:
        age = _now(path.parent) - path.stat().st_mtime
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # created but not yet written, or its writer died in between
        found = {"pid": None, "host": None}
    here = found["host"] == socket.gethostname()
    alive = _is_alive(found["pid"], found["started"]) if here else age < STALE_AFTER
    return found if alive else None


def _is_alive(pid: int, started: str | None) -> bool:
    """Whether process `pid` exists on this host and, if /proc says when it started, started at `started`."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except ProcessLookupError:
        return False
    return started is None or _started(pid) == started


def _started(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; None if /proc does not say or the process is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return "ended" if stat[0] in "ZX" else stat[19]


def _now(folder: Path) -> float:
    """The time by the clock of the file system that holds `folder`."""
    probe = folder / f".clock.{socket.gethostname()}.{os.getpid()}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
