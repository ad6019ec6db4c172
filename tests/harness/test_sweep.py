"""What becomes of a sweep's jobs, in this process and in others."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from adarank.harness import app, sweep


@pytest.mark.parametrize(
    ("words", "jobs"),
    [
        (["method=lora"], 1),
        (["method=lora,adalora", "seed=0,1,2", "rank=8"], 6),
        (["seed=range(0,5)", "train.lr=choice(1e-3,2e-3)"], 10),
        (["target_modules=[query,value]"], 1),
        (["method=glob(*)"], None),
    ],
)
def test_the_number_of_jobs(words, jobs):
    assert sweep.count_jobs(words) == jobs


@pytest.fixture
def begun(tmp_path, monkeypatch):
    config = OmegaConf.create(
        {
            "out": str(tmp_path),
            "fail_fast": False,
            "hydra": {"sweeper": {"params": {"rank": "4,8"}}, "overrides": {"task": ["seed=0,1"]}},
        }
    )
    monkeypatch.setenv(sweep.FOLDER, "to be restored")
    sweep.Begin().on_multirun_start(config)
    return Path(os.environ[sweep.FOLDER])


def test_a_sweep_says_what_will_run(capsys, begun):
    assert capsys.readouterr().out == f"sweep of 4 jobs: rank=4,8 seed=0,1 -> {begun.parent.parent}\n"


def test_failures_and_silent_jobs_are_told_of_at_the_end(begun, capsys):
    capsys.readouterr()
    sweep.write_job_result(1, ["seed=0", "rank=8"], 2, "rank=8 is too large")
    sweep.write_job_result(0, ["seed=0", "rank=4"], 0, None)
    sweep.write_job_result(2, ["seed=1", "rank=4"], 1, None)
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "sweep: 1 of 4 jobs done, 1 failed  [#####---------------] 25 %",
        "sweep: 2 of 4 jobs done, 1 failed  [##########----------] 50 %",
        "sweep: 3 of 4 jobs done, 2 failed  [###############-----] 75 %",
    ]
    found, total = sweep.collect_results()
    assert sweep.summary(found, total) == [
        "2 of 4 jobs failed:",
        "job 1 (seed=0 rank=8): rank=8 is too large",
        "job 2 (seed=1 rank=4): exit status 1",
        "1 of 4 jobs did not finish; run the same command again to run them",
    ]
    assert not begun.parent.exists()
    assert sweep.collect_results() == ([], None)


def test_outside_a_sweep_nothing_is_told(monkeypatch, capsys):
    monkeypatch.delenv(sweep.FOLDER, raising=False)
    sweep.write_job_result(0, [], 0, None)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("code", "status"), [(0, 0), (None, 0), (3, 1), ("no", 1)])
def test_a_job_that_calls_sys_exit_ends_alone(code, status):
    assert app.guarded(lambda: sys.exit(code))[0] == status


def test_ranks_of_one_sweep_may_conclude_at_the_same_moment(tmp_path, monkeypatch):
    """The last ones find that another has removed the sweeps' folder already."""
    folder = tmp_path / ".sweep" / "one"
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text('{"jobs": 2}')
    monkeypatch.setenv(sweep.FOLDER, str(folder))
    remove = shutil.rmtree
    monkeypatch.setattr(sweep.shutil, "rmtree", lambda path: remove(path.parent))
    assert sweep.collect_results() == ([], 2)
    assert not folder.parent.exists()
