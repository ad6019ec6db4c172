"""hydra/launcher=local_processes and slurm: run the jobs of a sweep with submitit, each in its own process.

submitit starts processes, calls sbatch and waits. This file adds a limit on the number of concurrent local jobs, a
report of jobs whose process dies while the others continue, the sweep's progress, and a dry run.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

ROOT = Path(__file__).resolve().parent.parent


class Submitit(Launcher):  # type: ignore[misc]
    """cluster: "local" or "slurm"; folder: for submitit's own files; at_once: jobs at a time; threads: OMP_NUM_THREADS
    of a job, None keeps this process's; timeouts: how often to resubmit a job that ran out of time; dry_run: show the
    jobs without submitting them; submitit: the executor's other settings."""

    def __init__(
        self,
        cluster: str,
        folder: str,
        at_once: int,
        threads: int | None,
        timeouts: int,
        dry_run: bool,
        **submitit: Any,
    ) -> None:
        if find_spec("hydra_plugins.hydra_submitit_launcher") is None:
            raise HydraException("this hydra/launcher needs submitit: pip install 'adarank[submitit]'")
        if at_once < 1:
            raise HydraException(f"hydra.launcher.at_once must be at least 1 (got {at_once})")
        self.cluster, self.folder, self.at_once, self.threads = cluster, folder, at_once, threads
        self.timeouts, self.dry_run = timeouts, dry_run
        self.submitit = {key: value for key, value in submitit.items() if value is not None}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from hydra_plugins.hydra_submitit_launcher.submitit_launcher import LocalLauncher

        self.job = LocalLauncher()  # one job as a function that can be submitted to any cluster
        self.job.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run every job. A job whose process died has no value, like a failed one."""
        if self.dry_run:
            return self._show(job_overrides)
        state = Singleton.get_state()
        calls = [
            (list(words), "hydra.sweep.dir", number, f"job_id_for_{number}", state)
            for number, words in enumerate(job_overrides, start=initial_job_idx)
        ]
        with self._environment():
            executor = self.executor()
            if self.cluster == "slurm":
                sent = executor.map_array(self.job, *zip(*calls, strict=True))
                return [_outcome(job, call) for job, call in zip(sent, calls, strict=True)]
            pool = ThreadPoolExecutor(self.at_once)
            try:
                return list(pool.map(lambda call: _run(executor, self.job, call), calls))
            finally:
                pool.shutdown(cancel_futures=True)  # interrupted: no more are started

    def executor(self) -> Any:
        """submitit's executor with the settings."""
        from submitit import LocalExecutor, SlurmExecutor

        class Unsent(SlurmExecutor):  # type: ignore[misc]
            """Writes scripts without needing a cluster."""

            @classmethod
            def affinity(cls) -> int:
                return 1

        slurm = Unsent if self.dry_run else SlurmExecutor
        settings = dict(self.submitit)
        if self.cluster == "slurm":
            settings["array_parallelism"] = self.at_once
        try:
            executor = (slurm if self.cluster == "slurm" else LocalExecutor)(self.folder, self.timeouts)
            executor.update_parameters(**executor._convert_parameters(settings))
        except RuntimeError:
            raise HydraException(
                "hydra/launcher=slurm cannot find srun; run the command on a machine of the cluster"
            ) from None
        except ValueError as error:
            raise HydraException(f"hydra.launcher: {str(error).partition(chr(10))[0]}") from None
        return executor

    def script(self, jobs: int) -> str:
        """The sbatch script for that many jobs."""
        executor = self.executor()
        if jobs > 1:
            executor.parameters["map_count"] = jobs
        return str(executor._make_submission_file_text(executor._submitit_command_str, "dry"))

    def _show(self, job_overrides: Sequence[Sequence[str]]) -> Sequence[JobReturn]:
        from adarank.harness import sweep

        print(f"dry run: {len(job_overrides)} jobs, {self.at_once} at a time")
        for words in job_overrides:
            print(f"  {' '.join(words)}")
        if self.cluster == "slurm":
            print(self.script(len(job_overrides)))
        sweep.collect_results()  # no job will write a result
        return [sweep.job_return(words) for words in job_overrides]

    @contextmanager
    def _environment(self) -> Iterator[None]:
        """Let jobs that start in this block inherit the checkout and the number of threads."""
        before = dict(os.environ)
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [before.get("PYTHONPATH")])])
        if self.threads is not None:
            os.environ["OMP_NUM_THREADS"] = str(self.threads)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def _run(executor: Any, function: Any, call: tuple[Any, ...]) -> JobReturn:
    """Run a job in a separate process, unless an earlier failure has stopped the sweep."""
    from adarank.harness import sweep

    return sweep.job_return(call[0]) if sweep.is_stopped() else _outcome(executor.submit(function, *call), call)


def _outcome(job: Any, call: tuple[Any, ...]) -> JobReturn:
    """Wait for a job and show its result; if its process died or failed before the job began, write the result on its
    behalf."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    from adarank.harness import sweep

    overrides, number = call[0], call[2]
    try:
        returned: JobReturn = job.results()[0]
    except UncompletedJobError as failure:
        error = f"its process died; the end of its output is in {job.paths.stderr}"
        if isinstance(failure, FailedJobError):  # submitit quotes the traceback between two lines of hyphens
            trace = str(failure).partition("\nYou can check")[0].rstrip("\n-")
            error = f"{trace.splitlines()[-1]} (traceback: {job.paths.stderr})"
        sweep.write_job_result(number, overrides, 1, error)
        return sweep.job_return(overrides)
    sweep.progress(number)
    return returned
