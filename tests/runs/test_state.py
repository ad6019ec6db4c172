import json
import os
import re
import shutil
import time

import pytest

from adarank.errors import RunFailed, SettingError
from adarank.runs import state as runs


def status(folder, state, **changes):
    folder.mkdir(exist_ok=True)
    runs.write_status(folder, state, 3, changes.pop("error", None))
    found = json.loads((folder / "status.json").read_text()) | changes
    (folder / "status.json").write_text(json.dumps(found))


def test_states(tmp_path):
    folder = tmp_path / "run"
    assert not runs.is_finished(folder, False, "none")
    status(folder, "finished")
    assert not runs.is_finished(folder, False, "none")  # no summary: half-written
    (folder / "summary.json").write_text("{}")
    assert runs.is_finished(folder, False, "none")
    assert not runs.is_finished(folder, True, "none")
    for state in ("failed", "diverged"):
        status(folder, state, error="the loss became nan")
        with pytest.raises(RunFailed, match=rf"{state} before \(the loss became nan\); retry=failed runs it again"):
            runs.is_finished(folder, False, "none")
        assert not runs.is_finished(folder, False, "failed")


def test_an_interrupted_or_failed_run_resumes(tmp_path):
    folder = tmp_path / "run"
    assert not runs.is_resumable(folder)
    status(folder, "running")
    assert runs.is_resumable(folder)
    assert not runs.is_finished(folder, False, "none")
    status(folder, "failed")
    assert runs.is_resumable(folder)
    for state in ("diverged", "finished"):
        status(folder, state)
        assert not runs.is_resumable(folder)


def test_begin_clears_an_earlier_attempt_and_nothing_else(tmp_path):
    folder = tmp_path / "out" / "run"
    status(tmp_path / "out", "failed")
    runs.make_folder(folder)
    (folder / "adapter").mkdir()
    (folder / "metrics.jsonl").write_text("{}")
    (folder / "notes.txt").write_text("mine")
    runs.begin(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["notes.txt", "status.json"]
    assert runs.read_status(folder)["state"] == "running"


def test_what_a_killed_or_failed_attempt_left_is_removed_and_nothing_else(tmp_path):
    """A kill while a file was written left the half of it for ever, and traceback.txt outlived a successful retry."""
    (tmp_path / "checkpoint").mkdir()
    left = [".status.json.0123456789ab.tmp", "checkpoint/.state.safetensors.ba9876543210.tmp", "traceback.txt"]
    for name in [*left, "checkpoint/.adapter_model.safetensors.4711.tmp", "mine.tmp", ".mine.tmp", "status.json"]:
        (tmp_path / name).write_text("half")
    runs.clean(tmp_path)
    assert {path.name for path in tmp_path.rglob("*")} == {"checkpoint", "mine.tmp", ".mine.tmp", "status.json"}


@pytest.mark.parametrize("make_file", [True, False])
def test_an_out_folder_that_cannot_be_written_is_refused(tmp_path, make_file):
    out = tmp_path / "file" / "out" if make_file else None
    if make_file:
        (tmp_path / "file").write_text("")
    else:
        out = "/proc/nowhere"
    with pytest.raises(SettingError, match=rf"out={out} cannot be written"):
        runs.check_writable(str(out))


def test_checking_leaves_nothing_behind(tmp_path):
    runs.check_writable(str(tmp_path / "a" / "b"))
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_for_what_will_be_saved_is_refused(tmp_path):
    free, run = shutil.disk_usage(tmp_path).free, tmp_path / "new" / "run"
    runs.check_space("runs", run, {"adapter": 2**10, "checkpoint": 0})
    with pytest.raises(SettingError) as error:
        runs.check_space("runs", run, {"adapter": free, "checkpoint": 2**40})
    assert re.fullmatch(
        r"out=runs has [\d,.]+ MiB free, but the run saves up to [\d,.]+ MiB for adapter/ and 1,048,576\.0 MiB for "
        r"checkpoint/; free some space, choose another folder, or disable checkpoints with checkpoint_seconds=null",
        str(error.value),
    )
    assert not run.parent.exists()
    with pytest.raises(SettingError, match=r"the run saves up to 1,048,576\.0 MiB for checkpoint/; free"):
        runs.check_space("runs", run, {"adapter": 0, "checkpoint": 2**40})


@pytest.mark.parametrize("with_file", [True, False])
def test_the_heart_beats_by_itself_and_knows_the_step(tmp_path, monkeypatch, with_file):
    monkeypatch.setattr(runs, "BEAT", 0.02)
    lock = tmp_path / "lock" if with_file else None
    if lock is not None:
        lock.touch()
        os.utime(lock, (0, 0))
    with runs.Heartbeat(tmp_path, lock) as heart:
        assert runs.read_status(tmp_path)["step"] == 0
        heart.beat(7)
        deadline = time.monotonic() + 10
        while runs.read_status(tmp_path)["step"] != 7 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert runs.read_status(tmp_path)["step"] == 7
        assert lock is None or lock.stat().st_mtime > 0
        heart.end("failed", "no luck")
    found = runs.read_status(tmp_path)
    assert (found["state"], found["error"], found["step"]) == ("failed", "no luck", 7)


def test_other_code_is_warned_of(tmp_path, capsys):
    (tmp_path / "summary.json").write_text(json.dumps({"commit": "a" * 40}))
    runs.warn_if_other_code(tmp_path, "b" * 40)
    assert "was made by commit aaaaaaaaaa, but this is commit bbbbbbbbbb" in capsys.readouterr().err
    runs.warn_if_other_code(tmp_path, "a" * 40)
    assert capsys.readouterr().err == ""
