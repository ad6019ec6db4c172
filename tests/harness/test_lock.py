"""One process a run: the lock, its corpses, and who wins when several find one."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adarank.harness import lock

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys
from pathlib import Path
from adarank.harness import lock
with lock.locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()  # until the test lets go
"""


def hold(folder):
    command = [sys.executable, "-c", HOLD, str(folder)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def write(folder, number, **holder):
    (folder / f".lock.{number}").write_text(json.dumps({"host": socket.gethostname(), "started": None, **holder}))


def test_it_is_held_once_and_given_back(tmp_path):
    with lock.locked(tmp_path):
        with (
            pytest.raises(lock.Held, match=f"trained by process {os.getpid()} on .*; wait for it"),
            lock.locked(tmp_path),
        ):
            pass
        assert lock.holder(tmp_path)["pid"] == os.getpid()
    assert lock.holder(tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_a_killed_holder_s_lock_is_taken_over(tmp_path):
    process = hold(tmp_path)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(lock.Held):
        lock.refuse_held(tmp_path)
    process.kill()
    process.wait()
    with lock.locked(tmp_path) as path:
        assert path.name == ".lock.2"
    lock.refuse_held(tmp_path)


def test_a_process_number_that_somebody_else_has_now_is_no_holder(tmp_path):
    write(tmp_path, 1, pid=os.getpid(), started="1")
    assert lock.holder(tmp_path) is None


def test_another_host_s_lock_counts_by_its_age(tmp_path):
    write(tmp_path, 1, host="elsewhere", pid=1)
    with pytest.raises(lock.Held, match="process 1 on elsewhere"):
        lock.refuse_held(tmp_path)
    path = tmp_path / ".lock.1"
    then = path.stat().st_mtime - lock.OLD - 5
    os.utime(path, (then, then))
    with lock.locked(tmp_path):
        pass


def test_a_lock_that_is_just_being_written_counts(tmp_path):
    path = tmp_path / ".lock.3"
    path.touch()
    with pytest.raises(lock.Held):
        lock.refuse_held(tmp_path)
    os.utime(path, (1, 1))
    assert lock.holder(tmp_path) is None


def test_of_many_that_find_a_corpse_one_wins(tmp_path):
    write(tmp_path, 1, pid=2**22 + 1)
    processes = [hold(tmp_path) for _ in range(4)]
    deadline = time.monotonic() + 100
    while sum(p.poll() is None for p in processes) > 1 and time.monotonic() < deadline:
        time.sleep(0.1)  # the winner holds on until every other has given up
    said = [p.communicate(timeout=60)[0] for p in processes]
    assert said.count("held\n") == 1
    assert sorted(p.returncode for p in processes) == [0, 1, 1, 1]


def test_the_number_follows_from_the_listing_that_was_judged(tmp_path, monkeypatch):
    """Somebody takes over between our look at the corpse and our own file: he has it, we do not take the next number."""
    write(tmp_path, 1, pid=2**22 + 1)
    judge = lock._holder

    def slow(path):
        found = judge(path)
        if not (tmp_path / ".lock.2").exists():
            write(tmp_path, 2, pid=os.getpid())
        return found

    monkeypatch.setattr(lock, "_holder", slow)
    with pytest.raises(lock.Held), lock.locked(tmp_path):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock.1", ".lock.2"]


def test_a_lock_let_go_while_we_read_it_leaves_its_number_free(tmp_path, monkeypatch):
    """Not the number after it: another who lists now takes the freed one, and both would hold."""
    write(tmp_path, 1, pid=2**22 + 1)
    write(tmp_path, 2, pid=os.getpid())
    judge = lock._holder

    def released(path):
        if path.name == ".lock.2":
            path.unlink(missing_ok=True)
        return judge(path)

    monkeypatch.setattr(lock, "_holder", released)
    assert lock.holder(tmp_path) is None
    write(tmp_path, 2, pid=os.getpid())
    with lock.locked(tmp_path) as path:
        assert path.name == ".lock.2"
