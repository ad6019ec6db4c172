"""Every run counted once, in the state that it is in."""

import json
import os
import pty
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from adarank.cli import main
from adarank.errors import SettingError
from adarank.runs import lock, status
from adarank.runs import state as runs

ROOT = Path(__file__).resolve().parents[2]


def make(out, name, state, **more):
    folder = out / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("method: lora\n")
    runs.write_status(folder, state, more.pop("step", 3), more.pop("error", None), **more)
    if state == "finished":
        summary = {"metric": {"name": "accuracy", "test": 0.75, "last": 0.5}}
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture
def out(tmp_path):
    started = (datetime.now(UTC) - timedelta(seconds=100)).isoformat()
    make(tmp_path, "a", "finished", steps=10)
    running = make(tmp_path, "b", "running", step=60, steps=100, started=started, started_step=10)
    make(tmp_path, "c", "running")
    make(tmp_path, "d", "failed", error="no memory")
    make(tmp_path, "e", "diverged", error="the loss became nan")
    (make(tmp_path, "deep/f", "finished") / "summary.json").unlink()
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "config.yaml").write_text("")
    (tmp_path / "a" / "wandb").mkdir()
    (tmp_path / "a" / "wandb" / "config.yaml").write_text("")
    (tmp_path / "report").mkdir()
    with lock.locked(running):
        yield tmp_path


def test_states_and_notes(out):
    rows = {row.name: row for row in status.read(out)}
    states = {name: row.state for name, row in rows.items()}
    assert states == {
        "a": "finished", "b": "running", "c": "stale", "d": "failed", "e": "failed", "deep/f": "incomplete",
        "g": "incomplete",
    }  # fmt: skip
    assert rows["a"].note == "accuracy 0.7500"
    assert rows["b"].note.startswith("about 1 min 2")  # 50 steps took 100 s, 40 are left
    assert rows["e"].note == "the loss became nan"


def test_it_ends_with_one_line_of_totals(out, capsys):
    assert main(["status", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert lines[-1] == "1 finished, 1 running, 2 failed, 1 stale, 2 incomplete"
    assert "60/100" in next(line for line in lines if line.startswith("b "))


def test_an_empty_folder_has_no_runs_and_a_missing_one_is_refused(tmp_path, capsys):
    assert main(["status", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "0 finished, 0 running, 0 failed, 0 stale, 0 incomplete\n"
    with pytest.raises(SettingError, match="OUT must be a folder that holds runs"):
        status.read(tmp_path / "nowhere")
    assert main(["status", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith(
        f"error: OUT must be a folder that holds runs (got {tmp_path / 'nowhere'})"
    )


def test_on_a_terminal_it_stops_when_nothing_runs(tmp_path):
    make(tmp_path, "a", "finished")
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "adarank", "status", str(tmp_path)], cwd=ROOT, stdout=theirs, timeout=60
    )
    os.close(theirs)
    shown = os.read(ours, 10_000).decode()
    assert done.returncode == 0
    assert shown.startswith("\x1b[H\x1b[2J")
    assert "1 finished" in shown


@pytest.mark.parametrize(("seconds", "said"), [(5, "5 s"), (65, "1 min 05 s"), (3720, "1 h 02 min")])
def test_durations(seconds, said):
    assert status.duration(seconds) == said
