"""hydra/launcher=ray on a cluster of two nodes, started here."""

import json
import os

import pytest
from hydra.errors import HydraException

from hydra_plugins.adarank_ray import RayTasks
from tests.experiments.test_run import inside
from tests.hydra_plugins.sweeping import TINY, finished, kill_a_job, start, sweep

LONG = ["method=lora", "seed=0,1,2", "tiny=true", "train.steps=300"]


def node(cpus, gpus, alive=True):
    return {"Alive": alive, "Resources": {"CPU": cpus, "GPU": gpus}}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"gpus": 2}, r"hydra.launcher.gpus must be at most 1, because no node of the cluster has more \(got 2\)"),
        ({"cpus": 9}, r"hydra.launcher.cpus must be at most 8, because no node of the cluster has more \(got 9\)"),
        ({"cpus": 8, "gpus": 0.5}, "no node of the cluster has both hydra.launcher.cpus=8 and hydra.launcher.gpus=0.5"),
    ],
)
def test_what_no_node_can_run_is_refused(asked, said):
    nodes = [node(8, 0), node(2, 1), node(64, 8, alive=False)]
    RayTasks(cpus=2, gpus=0.5)._check_resources(nodes)
    with pytest.raises(HydraException, match=said):
        RayTasks(**asked)._check_resources(nodes)


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    before = dict(os.environ)
    os.environ.pop("PYTHONPATH", None)  # the workers know of no checkout
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    found.add_node(num_cpus=2, num_gpus=1)
    os.environ.update(before)
    yield found
    found.shutdown()


@pytest.fixture
def launcher(cluster):
    return ["hydra/launcher=ray", f"hydra.launcher.address={cluster.address}"]


@pytest.mark.slow
def test_both_nodes_work_and_a_failed_job_is_reported(launcher, tmp_path):
    said, erred = sweep(tmp_path, *launcher, "method=lora", "rank=4,8,999", *TINY, status=2)
    assert "sweep: 3 of 3 jobs done, 1 failed" in said
    assert "job 2 (method=lora rank=999" in erred
    assert "is larger than the smaller side" in erred
    assert len(finished(tmp_path)) == 2


@pytest.mark.slow
def test_fractions_of_a_gpu_and_the_environment_reach_the_jobs(launcher, tmp_path):
    """What a job sees is what its task's plug-in, a script on the driver's PYTHONPATH, writes down."""
    (tmp_path / "sitecustomize.py").write_text(
        "import json, os, sys, time\n"
        "if os.environ.get('SEEN') and sys.argv[0].endswith('run.py'):\n"
        "    names = ('CUDA_VISIBLE_DEVICES', 'SEEN', 'OMP_NUM_THREADS')\n"
        "    with open(os.path.join(os.environ['SEEN'], f'{os.getpid()}.seen'), 'w') as file:\n"
        "        json.dump({n: os.environ.get(n) for n in names} | {'began': time.time(), 'words': sys.argv}, file)\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    words = [*launcher, "hydra.launcher.gpus=0.5", "method=lora", "seed=0,1", *TINY]
    sweep(tmp_path / "out", *words, SEEN=str(tmp_path), PYTHONPATH=path)
    seen = [json.loads(p.read_text()) for p in tmp_path.glob("*.seen")]
    jobs = [s for s in seen if "-m" not in s["words"]]
    assert len(jobs) == 2
    for job in jobs:
        assert job["CUDA_VISIBLE_DEVICES"] == "0"
        assert job["SEEN"] == str(tmp_path)
        assert job["OMP_NUM_THREADS"] == "1"
    ends = sorted((tmp_path / "out").glob("*/summary.json"), key=lambda p: p.stat().st_mtime)
    assert max(job["began"] for job in jobs) < ends[0].stat().st_mtime  # both at once: they share the one GPU


@pytest.mark.slow
def test_a_killed_worker_is_reported_the_rest_finishes_and_the_same_command_does_the_rest(launcher, tmp_path):
    process = start(tmp_path, *launcher, *LONG)
    killed = kill_a_job(tmp_path, process.pid)
    said, erred = process.communicate(timeout=300)
    assert process.returncode == 1, erred
    assert "sweep: 3 of 3 jobs done, 1 failed" in said
    assert "killed by signal SIGKILL" in erred
    before = finished(tmp_path)
    assert len(before) == 2
    assert killed not in before
    sweep(tmp_path, *launcher, *LONG)
    after = finished(tmp_path)
    assert len(after) == 3
    assert {name: after[name] for name in before} == before


@pytest.mark.slow
def test_a_worker_of_ray_that_is_killed_takes_its_job_along_and_nothing_else(launcher, tmp_path):
    process = start(tmp_path, *launcher, *LONG)
    kill_a_job(tmp_path, process.pid, parent_of=True)
    said, erred = process.communicate(timeout=300)
    assert process.returncode == 1, erred
    assert "sweep: 3 of 3 jobs done, 1 failed" in said
    assert "its worker died" in erred
    assert len(finished(tmp_path)) == 2


@pytest.mark.slow
def test_the_metric_comes_back_to_a_search(launcher, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    search = ["hydra/sweeper=optuna_lr", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2"]
    said, _ = sweep(tmp_path, *launcher, *search, "method=lora", "tiny=true")
    best = max(json.loads(p.read_text())["metric"]["best"] for p in tmp_path.glob("*/summary.json"))
    assert f"{best:.4f} on dev" in said


@pytest.mark.slow
def test_what_cannot_be_ends_with_a_sentence(launcher, tmp_path):
    _, erred = sweep(tmp_path, *launcher, "hydra.launcher.gpus=8", "method=lora", "seed=0,1", *TINY, status=2)
    assert "error: hydra.launcher.gpus must be at most 1, because no node of the cluster has more (got 8)" in erred


def test_no_cluster_is_a_sentence(tmp_path):
    pytest.importorskip("ray")
    nowhere = ["hydra/launcher=ray", "hydra.launcher.address=127.0.0.1:1"]
    said = inside("-m", *nowhere, "method=lora", "seed=0,1", *TINY, f"out={tmp_path}", status=2).stderr
    assert said.startswith("error: hydra.launcher.address must be the address that 'ray start --head' printed, or auto")
    assert "(got 127.0.0.1:1: [Errno" in said
    assert said.count("\n") == 1
