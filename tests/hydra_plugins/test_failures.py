"""Whatever starts the jobs: an exception that nobody foresaw is that job's error, and fail_fast keeps others from
starting."""

import importlib.util

import pytest

from tests.hydra_plugins.sweeping import ROOT, TINY, conf_with_a_broken_task, finished, sweep

LAUNCHERS = {
    "basic": [],
    "cores": ["hydra.launcher.n_jobs=1"],
    "local_processes": ["hydra.launcher.at_once=1"],
}
NEEDS = {"cores": "hydra_plugins.hydra_joblib_launcher", "local_processes": "hydra_plugins.hydra_submitit_launcher"}


@pytest.mark.slow  # by default tests/harness/run/test_execute.py does the same in this process
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_an_exception_is_told_with_its_text_and_fail_fast_stops(launcher, tmp_path):
    if launcher in NEEDS and importlib.util.find_spec(NEEDS[launcher]) is None:
        pytest.skip(f"{NEEDS[launcher]} is not installed")
    words = ["--config-dir", conf_with_a_broken_task(tmp_path), f"hydra/launcher={launcher}", *LAUNCHERS[launcher]]
    words += ["method=lora", "task=broken,rotten_tomatoes", "fail_fast=true", *TINY]
    out = tmp_path / "out"
    said, erred = sweep(out, *words, status=1, PYTHONPATH=str(ROOT))
    error = f"LookupError: no such thing (traceback: {out / 'job0-traceback.txt'})"
    assert f"error: {error}\n" in erred
    assert "1 of 2 jobs failed:\njob 0 (" in erred
    assert f"): {error}\n1 of 2 jobs did not finish; run the same command again to run them" in erred
    assert "died" not in erred
    assert "sweep: 1 of 2 jobs done, 1 failed; fail_fast=true stops the sweep" in said
    assert "raise LookupError" in (out / "job0-traceback.txt").read_text()
    assert not finished(out)


@pytest.mark.slow
def test_a_job_of_submitit_that_fails_before_it_begins_is_told_with_its_text(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    from submitit import LocalExecutor

    from hydra_plugins.adarank_submitit import _outcome

    executor = LocalExecutor(tmp_path / "%j")
    executor.update_parameters(timeout_min=1)
    job = executor.submit(int, "seven")
    with pytest.MonkeyPatch.context() as patch:
        from adarank.harness import sweep as told

        folder = tmp_path / "sweep"
        folder.mkdir()
        (folder / told.PLAN).write_text('{"jobs": 1, "fail_fast": false}')
        patch.setenv(told.FOLDER, str(folder))
        _outcome(job, (["seed=0"], "", 0))
        (result,) = told.results(folder)
    assert result.error == (
        f"ValueError: invalid literal for int() with base 10: 'seven' (traceback: {job.paths.stderr})"
    )
