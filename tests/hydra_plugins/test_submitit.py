"""Local processes, a cluster of shell scripts, and what sbatch would get."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.errors import HydraException

from adarank.harness import sweep as told
from tests.hydra_plugins.sweeping import TINY, finished, kill_a_job, start, sweep

pytest.importorskip("hydra_plugins.hydra_submitit_launcher")

from hydra_plugins.adarank_submitit import Submitit

SETTINGS = {"folder": "logs/%j", "at_once": 2, "threads": 1, "timeouts": 0, "dry_run": True}

# A SLURM of one machine: the tasks of an array one after the other, each with its own numbers.
SBATCH = """#!/bin/bash
script=$1
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
(for task in $(seq 0 "$last"); do
  SLURM_JOB_ID=7 SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$task SLURM_NTASKS=1 SLURM_NNODES=1 SLURM_NODEID=0 \\
  SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_JOB_NODELIST=here bash "$script"
done) >/dev/null 2>&1 &
echo "Submitted batch job 7"
"""
SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do [[ "$1" == --unbuffered ]] && shift || shift 2; done
exec "${@:1:$#-1}" "${@: -1}"
"""


@pytest.mark.slow
def test_local_processes_fail_alone_with_their_own_threads(tmp_path):
    words = ["hydra/launcher=local_processes", "method=lora", "rank=4,999", *TINY]
    said, erred = sweep(tmp_path, *words, status=2, OMP_NUM_THREADS="2")
    assert "sweep: 2 of 2 jobs done, 1 failed" in said
    assert "error: rank must be a whole number from 1 to 128" in erred.splitlines()[0]
    assert "1 of 2 jobs failed:\njob 1 (method=lora rank=999" in erred
    (name,) = finished(tmp_path)
    assert "1 threads" in (tmp_path / name / "summary.json").read_text()
    assert not (tmp_path / ".sweep").exists()


def test_the_script_that_sbatch_would_get():
    launcher = Submitit(
        "slurm", **SETTINGS, name="adarank", partition="gpu", timeout_min=90, nodes=1, gpus_per_node=1, mem_gb=16,
        cpus_per_task=4, qos=None, signal_delay_s=120, setup=["module load cuda"],
        additional_parameters={"mail-type": "END"},
    )  # fmt: skip
    lines = launcher.script(6).splitlines()
    for line in (
        "--array=0-5%2", "--partition=gpu", "--time=90", "--nodes=1", "--gpus-per-node=1", "--cpus-per-task=4",
        "--mem=16GB", "--signal=USR2@120", "--job-name=adarank", "--mail-type=END",
    ):  # fmt: skip
        assert f"#SBATCH {line}" in lines
    assert "module load cuda" in lines
    assert not [line for line in lines if "--qos" in line]
    (command,) = [line for line in lines if line.startswith("srun ")]
    assert f"{sys.executable} -u -m submitit.core._submit" in command
    assert not [line for line in launcher.script(1).splitlines() if "--array" in line]


def test_a_dry_run_shows_the_jobs_and_runs_none(tmp_path):
    words = ["hydra/launcher=slurm", "hydra.launcher.dry_run=true", "hydra.launcher.partition=gpu"]
    said, erred = sweep(tmp_path, *words, "method=lora,adalora", "seed=0,1", *TINY)
    assert "\ndry run: 4 jobs, 32 at a time\n  method=lora seed=0" in said
    assert "#SBATCH --array=0-3%4\n" in said
    assert "#SBATCH --partition=gpu\n" in said
    assert not finished(tmp_path)
    assert "jobs" not in erred


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"at_once": 0}, r"hydra.launcher.at_once must be at least 1 \(got 0\)"),
        ({"dry_run": False}, "hydra/launcher=slurm cannot find srun; run the command on a machine of the cluster"),
        ({"partitoin": "gpu"}, r"hydra.launcher: Unavailable parameter\(s\): \['partitoin'\]"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(settings, said, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(HydraException, match=said):
        Submitit("slurm", **{**SETTINGS, **settings}).executor()


def test_jobs_inherit_this_checkout_and_nothing_is_left_behind(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    before = dict(os.environ)
    with Submitit("local", **{**SETTINGS, "threads": 3})._environment():
        assert os.environ["OMP_NUM_THREADS"] == "3"
        found = subprocess.run(
            [sys.executable, "-c", "import adarank; print(adarank.__file__)"],
            cwd="/", capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert Path(found.stdout.strip()).parents[1] == Path(told.__file__).resolve().parents[2]
    assert dict(os.environ) == before


@pytest.mark.slow
def test_a_killed_process_is_reported_the_rest_finishes_and_the_same_command_does_the_rest(tmp_path):
    words = ["hydra/launcher=local_processes", "method=lora", "seed=0,1,2", "tiny=true", "train.steps=300"]
    process = start(tmp_path, *words)
    killed = kill_a_job(tmp_path, process.pid)
    said, erred = process.communicate(timeout=300)
    assert process.returncode == 1, erred
    assert "sweep: 3 of 3 jobs done, 1 failed" in said
    assert "1 of 3 jobs failed:" in erred
    assert "its process died; the end of its output is in" in erred
    before = finished(tmp_path)
    assert len(before) == 2
    assert killed not in before
    said, _ = sweep(tmp_path, *words)
    after = finished(tmp_path)
    assert len(after) == 3
    assert {name: after[name] for name in before} == before


@pytest.mark.slow
def test_a_job_array_on_a_cluster_of_shell_scripts(tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("sacct", "#!/bin/bash\necho 'JobID|State|NodeList'\n")):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    words = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "method=lora", "rank=4,8,999", *TINY]
    said, erred = sweep(tmp_path / "out", *words, status=2, PATH=path)
    assert "sweep: 3 of 3 jobs done, 1 failed" in said
    assert "job 2 (method=lora rank=999" in erred
    assert len(finished(tmp_path / "out")) == 2
