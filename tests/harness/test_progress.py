"""How far a sweep has come, from the files of its jobs."""

import shutil
import threading
import time
from dataclasses import replace
from itertools import pairwise

import pytest

from adarank.harness import progress
from adarank.runs.files import write_json
from adarank.runs.state import write_status
from tests.hydra_plugins.sweeping import wait_for


@pytest.fixture
def sweep(tmp_path):
    """A sweep of four jobs that began 60 s ago."""
    folder = tmp_path / "sweep"
    folder.mkdir()
    write_json(folder / progress.PLAN, {"jobs": 4, "fail_fast": False, "began": time.time() - 60})
    return folder


def run(sweep, job, step, started_step=0, status=None):
    """A job at `step` of 100; status: how it ended, None where it runs."""
    folder = sweep.parent / f"run-{job}"
    folder.mkdir(exist_ok=True)
    write_status(folder, "running" if status is None else "finished", step, steps=100, started_step=started_step)
    (sweep / f"run{job}.txt").write_text(str(folder))
    if status is not None:
        write_json(sweep / f"{job}.json", {"overrides": "", "status": status, "error": None})


def test_running_jobs_count_by_their_steps(sweep):
    assert progress.line(progress.measure(sweep)) == "sweep: 0 of 4 jobs done  [--------------------] 0 %"
    run(sweep, 0, 100, status=0)
    run(sweep, 1, 50)
    found = progress.measure(sweep)
    assert found.share == pytest.approx(1.475 / 4)
    assert found.left == pytest.approx(60 * 2.525 / 1.475, abs=2)
    assert progress.line(replace(found, left=100)) == (
        "sweep: 1 of 4 jobs done  [#######-------------] 37 %, about 1 min 40 s left"
    )


def test_after_its_last_step_a_job_has_evaluation_left(sweep):
    for job in range(4):
        run(sweep, job, 100)
    found = progress.measure(sweep)
    assert found.share == pytest.approx(progress.STEPS)
    assert found.left > 1


def test_only_what_this_sweep_trained_counts_for_the_time_left(sweep):
    write_json(sweep / "0.json", {"overrides": "", "status": 0, "error": None})  # was finished before
    run(sweep, 1, 75, started_step=50)  # resumed
    found = progress.measure(sweep)
    assert found.share == pytest.approx(1.7125 / 4)
    assert found.left == pytest.approx(60 * (4 - 1.7125) / 0.2375, rel=0.05)


def test_a_sweep_that_ended_or_stops_has_no_bar(sweep):
    for job in range(4):
        run(sweep, job, 100, status=int(job == 3))
    assert progress.line(progress.measure(sweep)) == "sweep: 4 of 4 jobs done, 1 failed"
    (sweep / "0.json").unlink()
    stopped = progress.line(progress.measure(sweep), stops=True)
    assert stopped == "sweep: 3 of 4 jobs done, 1 failed; fail_fast=true stops the sweep"


def test_a_search_that_decides_as_it_goes_counts_jobs_alone(sweep):
    write_json(sweep / progress.PLAN, {"jobs": None, "fail_fast": False, "began": time.time()})
    run(sweep, 0, 100, status=0)
    run(sweep, 1, 50)
    assert progress.line(progress.measure(sweep)) == "sweep: 1 jobs done"


def test_each_further_twentieth_is_news_once(sweep):
    seen = []
    for step in (0, 5, 22, 25, 44):
        run(sweep, 0, step)
        seen.append(progress.measure(sweep))
    run(sweep, 0, 100, status=0)  # prints its own line
    seen.append(progress.measure(sweep))
    news = [progress.is_news(now, before) for before, now in pairwise(seen)]
    assert news == [False, True, False, True, False]  # of the sweep 1, 5, 6, 10 and 25 %


def test_the_parent_prints_news_until_the_sweep_ends(sweep, capsys):
    watching = threading.Thread(target=progress.watch, args=(sweep, 0.01), daemon=True)
    watching.start()
    run(sweep, 0, 50)
    assert wait_for(lambda: capsys.readouterr().out).startswith("sweep: 0 of 4 jobs done  [##------------------] 12 %")
    shutil.rmtree(sweep)
    watching.join(timeout=30)
    assert not watching.is_alive()
