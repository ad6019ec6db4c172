"""One process per run: the kernel's lock, and the lock files where the kernel has none."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from adarank.runs import lock
from adarank.runs.state import write_status

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import os, sys
from pathlib import Path
from adarank.runs import lock
if sys.argv[2] == "files":
    lock.LOCAL = set()
with lock.locked(Path(sys.argv[1])):
    if sys.argv[3:] == ["forked"] and os.fork() == 0:
        os.read(0, 1)  # a data worker that outlives its parent
        os._exit(0)
    print("held", flush=True)
    sys.stdin.read()  # until the test lets go
"""


def hold(folder, kind="kernel", *words):
    command = [sys.executable, "-c", HOLD, str(folder), kind, *words]
    return subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


@pytest.fixture
def files(monkeypatch):
    """As on a network file system."""
    monkeypatch.setattr(lock, "LOCAL", set())


@pytest.fixture(params=["kernel", "files"])
def kind(request):
    if request.param == "files":
        request.getfixturevalue("files")
    return request.param


def write(folder, number, **holder):
    (folder / f".lock.{number}").write_text(json.dumps({"host": socket.gethostname(), "started": None, **holder}))


def test_it_is_held_once_and_given_back(tmp_path, kind):
    write_status(tmp_path, "running", 0)
    with lock.locked(tmp_path) as path:
        assert (path is None) == (kind == "kernel")
        with (
            pytest.raises(lock.RunLocked, match=f"is being trained by process {os.getpid()} on "),
            lock.locked(tmp_path),
        ):
            pass
        assert lock.holder(tmp_path) == {"pid": os.getpid(), "host": socket.gethostname()} | (
            {"started": lock._started(os.getpid())} if kind == "files" else {}
        )
    assert lock.holder(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_a_killed_holder_s_lock_is_free(tmp_path, kind):
    process = hold(tmp_path, kind)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(lock.RunLocked):
        lock.refuse_locked(tmp_path)
    process.kill()
    process.wait()
    if kind == "kernel":
        assert not list(tmp_path.iterdir()), "a killed run leaves no lock file"
    with lock.locked(tmp_path) as path:
        assert path is None or path.name == ".lock.2"
    lock.refuse_locked(tmp_path)


def test_of_many_processes_one_wins(tmp_path, kind):
    if kind == "files":  # and all find the same stale lock
        write(tmp_path, 1, pid=2**22 + 1)
    processes = [hold(tmp_path, kind) for _ in range(4)]
    deadline = time.monotonic() + 100
    while sum(p.poll() is None for p in processes) > 1 and time.monotonic() < deadline:
        time.sleep(0.1)  # the winner holds on until every other has given up
    said = [p.communicate(timeout=60)[0] for p in processes]
    assert said.count("held\n") == 1
    assert sorted(p.returncode for p in processes) == [0, 1, 1, 1]


def test_a_forked_child_does_not_keep_its_killed_parent_s_lock(tmp_path):
    process = hold(tmp_path, "kernel", "forked")
    assert process.stdout.readline() == "held\n"
    assert lock.holder(tmp_path) is not None
    os.kill(process.pid, signal.SIGKILL)
    os.waitpid(process.pid, 0)
    until = time.monotonic() + 10  # the child may not have let go of its copy yet
    while lock.holder(tmp_path) is not None and time.monotonic() < until:
        time.sleep(0.01)
    assert lock.holder(tmp_path) is None  # the child still waits
    process.stdin.close()


def test_a_child_that_leaves_the_block_does_not_release_its_parent_s_lock(tmp_path):
    with lock.locked(tmp_path):
        context = lock.locked(tmp_path / "other")
        (tmp_path / "other").mkdir()
        context.__enter__()
        if (child := os.fork()) == 0:
            context.__exit__(None, None, None)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert lock.holder(tmp_path / "other") is not None
        context.__exit__(None, None, None)
        assert lock.holder(tmp_path / "other") is None


def test_looking_keeps_no_run_from_starting(tmp_path):
    over = threading.Event()

    def look():
        while not over.is_set():
            lock.holder(tmp_path)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(300):
            with lock.locked(tmp_path):
                pass
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_a_holder_without_a_status_of_its_own_is_another_process(tmp_path):
    write_status(tmp_path, "failed", 3)  # of an earlier attempt
    with lock.locked(tmp_path), pytest.raises(lock.RunLocked, match="is being trained by another process"):
        lock.refuse_locked(tmp_path)


def test_a_run_without_a_folder_is_held_by_nobody(tmp_path, kind):
    lock.refuse_locked(tmp_path / "nowhere")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_where_the_kernel_has_no_lock_files_are_the_lock(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    before = set(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with lock.locked(tmp_path) as path:
        assert path.name == ".lock.1"
        assert lock.holder(tmp_path)["pid"] == os.getpid()
    assert lock.holder(tmp_path) is None
    assert set(os.listdir("/proc/self/fd")) == before, "no descriptor stays open"


def test_without_fcntl_files_are_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    with lock.locked(tmp_path) as path:
        assert path.name == ".lock.1"


def test_the_file_system_is_the_one_mounted_nearest_to_the_folder(tmp_path, monkeypatch):
    """Of NFS only the client that locks a folder knows of the lock."""
    inner = tmp_path / "a b" / "inner"
    inner.mkdir(parents=True)
    outer, spaced = tmp_path, str(tmp_path / "a b").replace(" ", r"\040")
    text = (
        "1 0 8:1 / / rw - ext4 /dev/vda rw\n"
        f"2 1 0:41 / {spaced} rw shared:1 - tmpfs tmpfs rw\n"
        f"3 1 0:42 / {spaced} rw shared:2 - nfs4 server:/export rw\n"
    )
    read = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda p, **k: text if str(p).startswith("/proc") else read(p, **k))
    assert lock._is_local(outer)
    assert not lock._is_local(inner)


def test_a_process_number_that_was_given_again_is_no_holder(tmp_path, files):
    write(tmp_path, 1, pid=os.getpid(), started="1")
    assert lock.holder(tmp_path) is None


def test_another_host_s_lock_counts_by_its_age(tmp_path, files):
    write(tmp_path, 1, host="elsewhere", pid=1)
    with pytest.raises(lock.RunLocked, match="process 1 on elsewhere"):
        lock.refuse_locked(tmp_path)
    path = tmp_path / ".lock.1"
    then = path.stat().st_mtime - lock.STALE_AFTER - 5
    os.utime(path, (then, then))
    with lock.locked(tmp_path):
        pass


def test_a_lock_that_is_just_being_written_counts(tmp_path, files):
    path = tmp_path / ".lock.3"
    path.touch()
    with pytest.raises(lock.RunLocked):
        lock.refuse_locked(tmp_path)
    os.utime(path, (1, 1))
    assert lock.holder(tmp_path) is None


def test_the_number_follows_from_the_listing_that_was_judged(tmp_path, files, monkeypatch):
    """Another process takes over between our look at the stale lock and our own file: it has the lock, and we do not
    take the next number."""
    write(tmp_path, 1, pid=2**22 + 1)
    judge = lock._holder_of

    def slow(path):
        found = judge(path)
        if not (tmp_path / ".lock.2").exists():
            write(tmp_path, 2, pid=os.getpid())
        return found

    monkeypatch.setattr(lock, "_holder_of", slow)
    with pytest.raises(lock.RunLocked), lock.locked(tmp_path):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock.1", ".lock.2"]


def test_a_lock_released_while_we_read_it_leaves_its_number_free(tmp_path, files, monkeypatch):
    """Not the number after it: another process that lists now takes the freed one, and both would hold."""
    write(tmp_path, 1, pid=2**22 + 1)
    write(tmp_path, 2, pid=os.getpid())
    judge = lock._holder_of

    def released(path):
        if path.name == ".lock.2":
            path.unlink(missing_ok=True)
        return judge(path)

    monkeypatch.setattr(lock, "_holder_of", released)
    assert lock.holder(tmp_path) is None
    write(tmp_path, 2, pid=os.getpid())
    with lock.locked(tmp_path) as path:
        assert path.name == ".lock.2"
