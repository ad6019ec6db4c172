"""Finished runs as files that can be committed, and back."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from analysis.load import read_runs
from experiments.pack import pack, unpack

ROOT = Path(__file__).resolve().parents[2]


def command(*words):
    return subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    done = command("experiments/run.py", "method=adalora", "tiny=true", f"out={out / 'sweep'}")
    assert done.returncode == 0, done.stderr
    return out


def test_a_run_that_went_through_a_file_is_the_same_but_for_weights_and_quantiles(out, tmp_path):
    (file,) = pack(out, tmp_path / "results")
    (run,) = out.glob("sweep/adalora-*")
    assert file == tmp_path / "results" / "sweep" / f"{run.name}.json"
    (back,) = unpack(tmp_path / "results", tmp_path / "back")
    assert back == tmp_path / "back" / "sweep" / run.name
    assert json.loads((back / "summary.json").read_text()) == json.loads((run / "summary.json").read_text())
    config, whole = (yaml.safe_load((f / "config.yaml").read_text()) for f in (back, run))
    assert config == {**whole, "out": "sweep"}
    assert str(out) not in file.read_text(), "folders of this machine stay here"
    assert (back / "metrics.jsonl").read_text() == (run / "metrics.jsonl").read_text()
    lines = [[json.loads(x) for x in (f / "allocations.jsonl").read_text().splitlines()] for f in (run, back)]
    assert lines[0]
    assert all(line.pop("score_quantiles") for line in lines[0])
    assert lines[0] == lines[1]
    assert sorted(p.name for p in back.iterdir()) == [
        "allocations.jsonl",
        "config.yaml",
        "metrics.jsonl",
        "status.json",
        "summary.json",
    ]


def test_what_came_back_is_analysed_and_skipped_like_any_run(out, tmp_path):
    pack(out, tmp_path / "results")
    (back,) = unpack(tmp_path / "results", tmp_path / "back")
    (run,) = read_runs(tmp_path / "back")
    assert (run.state, run.score) == ("finished", read_runs(out)[0].score)
    before = {p.name: p.stat().st_mtime_ns for p in back.iterdir()}
    done = command("experiments/run.py", "method=adalora", "tiny=true", f"out={tmp_path / 'back' / 'sweep'}")
    assert done.returncode == 0
    assert "finished already" in done.stdout
    assert {p.name: p.stat().st_mtime_ns for p in back.iterdir()} == before


def test_nothing_is_written_twice_and_unfinished_runs_are_left_out(out, tmp_path):
    folder = tmp_path / "runs" / "lora-0123456789-s0"
    folder.mkdir(parents=True)
    (folder / "status.json").write_text('{"state": "running"}')
    assert pack(tmp_path / "runs", tmp_path / "results") == []
    assert len(pack(out, tmp_path / "results")) == 1
    assert pack(out, tmp_path / "results") == []
    assert len(unpack(tmp_path / "results", tmp_path / "back")) == 1
    assert unpack(tmp_path / "results", tmp_path / "back") == []


def test_what_was_measured_of_a_run_later_is_added_to_its_file(out, tmp_path):
    runs, results = tmp_path / "runs", tmp_path / "results"
    shutil.copytree(out, runs)
    (file,) = pack(runs, results)
    (run,) = runs.glob("sweep/adalora-*")
    before = json.loads(file.read_text())
    for name in ("forgetting.json", "similarity.json"):
        (run / name).write_text('{"stsb": {"before": 0.8, "after": 0.7}}')
    assert pack(runs, results) == [file]
    measures = {"forgetting.json": {"stsb": {"before": 0.8, "after": 0.7}}}
    assert json.loads(file.read_text()) == {**before, "measures": measures}, "similarities are too large for it"
    assert pack(runs, results) == []
    (back,) = unpack(results, tmp_path / "back")
    assert json.loads((back / "forgetting.json").read_text()) == measures["forgetting.json"]
    (run / "forgetting.json").unlink()
    assert pack(runs, results) == [], "what is in a file stays there"
    (run / "delta.json").write_text('{"top": 10}')
    assert pack(runs, results) == [file]
    assert json.loads(file.read_text())["measures"] == {**measures, "delta.json": {"top": 10}}
    (run / "delta.json").write_text("{")
    kept = file.read_text()
    done = command("experiments/pack.py", "pack", runs, results)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {run / 'delta.json'} cannot be read; valid: ")
    assert len(done.stderr.splitlines()) == 1
    assert file.read_text() == kept


def test_a_folder_that_is_none_is_refused(tmp_path):
    done = command("experiments/pack.py", "pack", tmp_path / "absent", tmp_path / "results")
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path / 'absent'} is not a folder; valid: one that holds runs\n"
