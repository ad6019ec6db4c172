"""hydra/launcher=ray: runs the jobs of a sweep as Ray tasks on an existing cluster, each in its own process.

Ray provides scheduling, resources and recovery. A task starts the same command for its one job and waits for it, so
that a crash (out of memory, a segmentation fault) affects nothing else. A task whose worker dies is reported but not
repeated, and the other jobs continue. All nodes must see the same checkout, environment and folders as the driver.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hydra.core.utils import JobReturn, setup_globals
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

SET_BY_RAY = ("RAY_", "CUDA_VISIBLE_DEVICES")  # prefixes of the variables that Ray sets on each node


class RayTasks(Launcher):  # type: ignore[misc]
    """address: the cluster's, "auto" for the one that this machine belongs to; cpus, gpus: resources per job (jobs with
    a fraction of a GPU share it); cpus is also the job's OMP_NUM_THREADS; nproc: above 1, each job runs under torchrun
    with that many processes."""

    def __init__(self, address: str = "auto", cpus: float = 1, gpus: float = 0, nproc: int = 1) -> None:
        self.address, self.cpus, self.gpus, self.nproc = address, cpus, gpus, nproc

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run every job. The returned values are the best dev metrics, or None for a failed job."""
        try:
            import ray
        except ImportError:
            raise HydraException("hydra/launcher=ray needs Ray: pip install 'adarank[ray]'") from None

        from adarank.harness import sweep

        setup_globals()
        try:
            _check_address(self.address)
            ray.init(address=self.address, ignore_reinit_error=True, configure_logging=False, log_to_driver=True)
        except OSError as refusal:
            reason = str(refusal).partition("\n")[0].rstrip(".")
            raise HydraException(
                f"hydra.launcher.address must be the address that 'ray start --head' printed, or auto on one of the "
                f"cluster's machines (got {self.address}: {reason})"
            ) from None
        self._check_resources(ray.nodes())
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers need not know this checkout
        task = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=0)(run_job)
        environment = {k: v for k, v in os.environ.items() if not k.startswith(SET_BY_RAY) and k != sweep.FOLDER}
        environment["OMP_NUM_THREADS"] = str(max(1, int(self.cpus)))
        waiting = {}
        for i, overrides in enumerate(job_overrides):
            command = self._command(overrides)
            job = task.options(name=f"job {initial_job_idx + i}")
            waiting[job.remote(command, environment, os.getcwd(), sweep.RESULT)] = i
        found: list[float | None] = [None] * len(job_overrides)
        while waiting:
            for done in ray.wait(list(waiting), num_returns=1)[0]:
                i = waiting.pop(done)
                try:
                    status, error, found[i] = ray.get(done)
                except ray.exceptions.RayError as failure:
                    status, error = 1, f"its worker died ({str(failure).strip().partition(chr(10))[0]})"
                sweep.write_job_result(initial_job_idx + i, job_overrides[i], status, error)
            if sweep.is_stopped():
                for job in waiting:
                    ray.cancel(job)
                break
        return [sweep.job_return(o, best) for o, best in zip(job_overrides, found, strict=True)]

    def _command(self, overrides: Sequence[str]) -> list[str]:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.nproc}"]
        script = Path(sys.argv[0]).absolute()  # "adarank run" is not a file
        program = [str(script)] if script.is_file() else ["-m", "adarank", "run"]
        return [sys.executable, *(torchrun if self.nproc > 1 else []), *program, *overrides]

    def _check_resources(self, nodes: Sequence[dict[str, Any]]) -> None:
        """Raise HydraException for a job that no node of the cluster can run, because Ray would wait for such a
        node."""
        alive = [node["Resources"] for node in nodes if node["Alive"]]
        for name, key, wanted in (("cpus", "CPU", self.cpus), ("gpus", "GPU", self.gpus)):
            most = max((node.get(key, 0) for node in alive), default=0)
            if wanted > most:
                raise HydraException(
                    f"hydra.launcher.{name} must be at most {most:g}, because no node of the cluster has more "
                    f"(got {wanted:g})"
                )
        if not any(n.get("CPU", 0) >= self.cpus and n.get("GPU", 0) >= self.gpus for n in alive):
            raise HydraException(
                f"no node of the cluster has both hydra.launcher.cpus={self.cpus:g} and "
                f"hydra.launcher.gpus={self.gpus:g}; reduce one of them"
            )


def _check_address(address: str) -> None:
    """Raise OSError if nothing listens at host:port; Ray itself would wait for minutes."""
    place = urlsplit(f"//{address}")
    if place.port is not None:
        socket.create_connection((place.hostname or "", place.port), timeout=10).close()


def run_job(
    command: list[str], environment: dict[str, str], folder: str, result_variable: str
) -> tuple[int, str | None, float | None]:
    """(exit status, error in one line, best dev metric) of one job's process, on the node that Ray chose. Its output is
    forwarded to the driver; result_variable: the environment variable that names the file for its result."""
    gpus = {key: value for key, value in os.environ.items() if key == "CUDA_VISIBLE_DEVICES"}
    with tempfile.TemporaryDirectory() as place:
        result_file = Path(place) / "result.json"
        process = subprocess.Popen(
            command, cwd=folder, env={**environment, **gpus, result_variable: str(result_file)}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, preexec_fn=_die_with_parent,
        )  # fmt: skip
        assert process.stdout is not None
        last = "no output"
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
        status = process.wait()
        result = json.loads(result_file.read_text(encoding="utf-8")) if result_file.exists() else {}
    if status < 0:
        return 1, f"killed by signal {signal.Signals(-status).name}", None
    return status, (result.get("error") or last) if status else None, result.get("best")


def _die_with_parent() -> None:
    """A job must not outlive the worker that started it (Linux)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
