"""hydra/launcher=cores: capped threads; a dead worker ends the sweep, not what was done."""

import pytest

from tests.hydra_plugins.sweeping import TINY, finished, kill_a_job, start, sweep

pytest.importorskip("hydra_plugins.hydra_joblib_launcher")


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
    assert "the same command goes on with them" in erred
    assert "Traceback" not in erred
    before = finished(tmp_path)
    sweep(tmp_path, *words)
    after = finished(tmp_path)
    assert len(after) == 3
    assert {name: after[name] for name in before} == before
