"""The ready sweeps: each composes, says what it costs, and runs; -m slow runs all of every one."""

import re

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from adarank.harness.config.validate import conf_folder
from adarank.harness.sweep import count_jobs
from tests.experiments.test_run import inside, summaries
from tests.representatives import representatives

FOLDER = conf_folder() / "experiment"
SWEEPS = sorted(p.stem for p in FOLDER.glob("*.yaml") if "hydra:" in p.read_text())
ONE_RUN_A_SEED = {"full", "head", "bitfit"}  # rank and targets are nothing to them


def words(name):
    params = OmegaConf.load(FOLDER / f"{name}.yaml").hydra.sweeper.params
    return [f"{key}={value}" for key, value in params.items()]


def first_job(name):
    overrides = OverridesParser.create().parse_overrides(words(name))
    return [
        f"{o.key_or_group}={next(o.sweep_string_iterator())}" if o.is_sweep_override() else o.input_line
        for o in overrides
    ]


def test_every_knob_has_its_sweep():
    knobs = ("score", "allocator", "schedule", "init", "gamma", "interval", "phases", "initial")
    assert {"ranks", "controls", "lr_grid", "lr_grid_full", *(f"ablate_{k}" for k in knobs)} == set(SWEEPS)


@pytest.mark.parametrize("name", SWEEPS)
def test_its_head_says_how_many_jobs_and_the_command(name):
    head = (FOLDER / f"{name}.yaml").read_text().partition("defaults:")[0]
    assert int(re.search(r"Cost: (\d+) jobs", head).group(1)) == count_jobs(words(name))
    assert f"python experiments/run.py -m experiment={name} out=" in head


@pytest.mark.parametrize("name", representatives(SWEEPS, ("ablate_score",)))
def test_one_job_of_it_runs(name, tmp_path):
    inside(f"experiment={name}", *first_job(name), "tiny=true", f"out={tmp_path}")
    (summary,) = summaries(tmp_path).values()
    assert summary["status"] == "finished"
    assert summary["steps"] == 12


@pytest.mark.slow
def test_settings_that_a_method_does_not_use_make_no_more_runs(tmp_path):
    narrow = ["method=full,lora", "rank=4,8", "targets=all", "seed=0", "train.steps=2"]
    said = inside("-m", "experiment=ranks", *narrow, "tiny=true", f"out={tmp_path}").stdout
    assert "sweep: 4 of 4 jobs done" in said
    assert sorted(s["method"] for s in summaries(tmp_path).values()) == ["full", "lora", "lora"]


def test_without_m_it_is_refused(tmp_path):
    said = inside("experiment=lr_grid", "tiny=true", f"out={tmp_path}", status=2).stderr
    assert (
        said
        == "error: experiment=lr_grid is a sweep over method, train.lr, seed; add -m, or choose one value with method=VALUE\n"
    )


def test_two_at_once_are_refused(tmp_path):
    said = inside("-m", "experiment=lr_grid,ranks", "tiny=true", f"out={tmp_path}", status=2).stderr
    assert "experiment=ranks is a sweep over method, rank, targets, seed; run one experiment at a time" in said
    assert not summaries(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEEPS)
def test_the_whole_sweep_tiny(name, tmp_path):
    said = inside("-m", f"experiment={name}", "tiny=true", f"out={tmp_path}").stdout
    jobs = count_jobs(words(name))
    assert f"sweep: {jobs} of {jobs} jobs done\n" in said
    found = summaries(tmp_path)
    assert {s["status"] for s in found.values()} == {"finished"}
    assert len(found) + said.count("finished already") == jobs
    if name == "ranks":
        assert len(found) == 93
        assert sum(s["method"] in ONE_RUN_A_SEED for s in found.values()) == 3
