"""hydra/launcher=cores: capped threads; a dead worker ends the sweep, not what was done."""

import json
import os
import random
import signal
import time

import pytest

from tests.hydra_plugins.sweeping import TINY, finished, kill_a_job, start, sweep

pytest.importorskip("hydra_plugins.hydra_joblib_launcher")


@pytest.mark.slow
def test_workers_have_one_thread_each_and_tell_the_parent(tmp_path):
    words = ["hydra/launcher=cores", "hydra.launcher.n_jobs=2", "method=lora", "rank=4,999", *TINY]
    said, erred = sweep(tmp_path, *words, status=2)
    assert "sweep: 2 of 2 jobs done, 1 failed" in said
    assert "1 of 2 jobs failed:\njob 1 (method=lora rank=999" in erred
    (name,) = finished(tmp_path)
    assert "1 threads" in (tmp_path / name / "summary.json").read_text()


@pytest.mark.slow
def test_a_killed_worker_is_a_sentence_and_the_same_command_finishes(tmp_path):
    words = [
        "hydra/launcher=cores",
        "hydra.launcher.n_jobs=2",
        "method=lora",
        "seed=0,1,2",
        "tiny=true",
        "train.steps=300",
    ]
    process = start(tmp_path, *words)
    kill_a_job(tmp_path, process.pid)
    _, erred = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "error: a worker process died" in erred
    assert "run the same command again to start them" in erred
    assert "Traceback" not in erred
    before = finished(tmp_path)
    sweep(tmp_path, *words)
    after = finished(tmp_path)
    assert len(after) == 3
    assert {name: after[name] for name in before} == before


@pytest.mark.slow
def test_24_runs_killed_three_times_at_random_end_as_if_they_had_not_been(tmp_path):
    words = ["hydra/launcher=cores", "hydra.launcher.n_jobs=2", "method=full,lora,adalora,qlora", "rank=2,4"]
    words += ["seed=0,1,2,3", "tiny=true", "train.steps=60", "checkpoint_seconds=0"]
    sweep(tmp_path / "whole", *words)
    expected = {name: result(tmp_path / "whole" / name) for name in finished(tmp_path / "whole")}
    assert len(expected) == 28, "full has no rank: 4 runs, the others 8 each"
    draw, out, seen, resumed = random.Random(0), tmp_path / "killed", {}, 0
    for kill in range(3):
        process = start(out, *words)
        while len(finished(out)) < 7 * (kill + 1):  # somewhere in the sweep's next quarter
            assert process.poll() is None
            time.sleep(0.2)
        time.sleep(draw.uniform(0.0, 3.0))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert {name: finished(out)[name] for name in seen} == seen, "what was finished is not trained again"
        seen = finished(out)
        running = [p.parent.name for p in out.glob("*/status.json") if json.loads(p.read_text())["state"] == "running"]
        print(f"kill {kill + 1}: {len(seen)} finished, in the middle of {running}")
    said, _ = sweep(out, *words)
    resumed = said.count("resumes from the checkpoint")
    after = finished(out)
    print(f"finished: {len(after)} runs, {resumed} resumed from a checkpoint in the last part")
    assert {name: after[name] for name in seen} == seen
    assert {name: result(out / name) for name in after} == expected


def result(folder):
    """A run's numbers and weights, without times and places."""
    summary = json.loads((folder / "summary.json").read_text())
    return {
        **{key: summary[key] for key in ("metric", "rank", "seed", "method")},
        "metrics": (folder / "metrics.jsonl").read_text(),
        "weights": [(p.name, p.read_bytes()) for p in sorted(folder.rglob("*.safetensors"))],
    }
