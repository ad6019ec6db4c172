"""Turns a command line into a composed configuration, and an error into one sentence and an exit status.

Only Hydra is imported here; the training code is imported inside the job, so that --cfg job answers at once.
Exit status: 0 done; 2 a setting cannot be used; 1 a run failed.
"""

import os
import sys
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from contextlib import redirect_stdout
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from adarank.errors import RunFailed, SettingError
from adarank.harness import sweep
from adarank.harness.config import spec
from adarank.harness.config.messages import sentence
from adarank.harness.config.validate import conf_folder
from adarank.harness.run import distributed
from adarank.runs.files import TRACEBACK, first_line, write_traceback
from adarank.runs.lock import RunLocked


def job(config: DictConfig) -> float | None:
    """One run, alone or in a sweep, in the process that the launcher chose.

    Returns the run's best dev metric, the objective of sweepers, even if the run was finished before; None if there is
    none.
    """
    hydra_config = HydraConfig.get()
    words = list(hydra_config.overrides.task)
    in_sweep = hydra_config.mode == RunMode.MULTIRUN
    if in_sweep and sweep.is_stopped():
        if hydra_config.runtime.choices["hydra/launcher"] == "basic":  # all its jobs run in this process, one by one
            raise sweep.Stopped
        return None
    best: float | None = None
    began = partial(sweep.write_job_folder, hydra_config.job.num) if in_sweep else None

    def work() -> None:
        nonlocal best
        sweep.refuse_unswept(hydra_config, in_sweep)
        from adarank.harness.run.execute import execute

        try:
            best = execute(config, words, dict(hydra_config.runtime.choices), began)
        except RunLocked as error:
            if not in_sweep:
                raise
            print(f"{error}; skipped here", flush=True)  # a duplicate in this parallel sweep, or a job of another sweep

    number = hydra_config.job.num if in_sweep else None
    status, error = guarded(
        work, None if number is None else Path(config.out).expanduser() / f"job{number}-{TRACEBACK}"
    )
    if in_sweep:
        sweep.write_job_result(hydra_config.job.num, words, status, error)
    else:
        sweep.write_objective(best, error)
    _statuses.append(status)
    return best


_statuses: list[int] = []  # of the jobs that ran in this process


def guarded(work: Callable[[], Any], traceback_file: Path | None = None) -> tuple[int, str | None]:
    """Do `work`; an exception becomes one sentence on stderr and a status. Returns (status, error).

    The traceback of an unexpected exception goes to `traceback_file`, or to stderr if that is None.
    """
    try:
        work()
    except (SettingError, HydraException, OmegaConfBaseException) as error:
        return complain(2, sentence(error))
    except RunFailed as error:
        return complain(1, str(error))
    except BrokenExecutor:
        return complain(
            1,
            "a worker process died (it ran out of memory or was killed), and the launcher abandoned the remaining "
            "jobs; run the same command again to start them",
        )
    except sweep.Stopped:
        return 0, None  # the job that failed has its status
    except SystemExit as error:  # it would end a whole sweep
        return complain(1, f"the run called sys.exit({error.code})") if error.code else (0, None)
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            return complain(2, sentence(error))
        where = write_traceback(traceback_file)
        message = f"{first_line(error)} {where}".rstrip()
        if distributed.world() > 1:  # the other ranks wait for this one
            distributed.fail(message)
        return complain(1, message)
    return 0, None


def complain(status: int, message: str) -> tuple[int, str]:
    if distributed.is_main():
        print(f"error: {message}", file=sys.stderr, flush=True)
    return status, message


def main() -> int:
    """Run the command line in sys.argv and return the exit status. In a sweep, a failed job is reported and the others
    still run.

    Under torchrun only rank 0 prints, and the process ends here.
    """
    if {"-h", "--help"} & set(sys.argv[1:]):
        from adarank.harness.config.help import describe

        print(describe())
        return 0
    if distributed.is_main():
        return distributed.end(_main())
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        return distributed.end(_main())


def _main() -> int:
    for word in sys.argv[1:]:
        key = word.removeprefix("--").partition("=")[0]
        if word.startswith("--") and key.partition(".")[0] in {f.name for f in fields(spec.Spec)}:
            setting = word.removeprefix("--")
            return complain(
                2,
                f"{word} must be written without hyphens, as {setting} (in a W&B sweep, use ${{args_no_hyphens}} "
                "instead of ${args})",
            )[0]
    launchers = [word.partition("=")[2] for word in sys.argv if word.startswith("hydra/launcher=")]
    if distributed.world() > 1 and launchers and launchers[-1] != "basic":
        reason = "whose processes run every job together"
        return complain(2, f"hydra/launcher must be basic under torchrun, {reason} (got {launchers[-1]})")[0]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors reach `guarded`, which turns them into sentences
    if distributed.world() > 1:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # otherwise DDP warns every rank about unused parameters
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads starve each other when a core is busy
    os.environ.pop(sweep.FOLDER, None)
    spec.register()
    _statuses.clear()

    def compose() -> None:
        hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")(job)()

    composed = 130
    try:
        composed, _ = guarded(compose)
    except KeyboardInterrupt:
        if distributed.is_main():
            print("interrupted; the same command resumes the unfinished runs", file=sys.stderr)
    finally:
        found, total = sweep.collect_results()
        if (found or composed == 0) and distributed.is_main():  # else it never began, and the reason was printed
            for line in sweep.summary(found, total):
                print(line, file=sys.stderr)
    unheard = total is not None and len(found) < total
    return max([composed, *_statuses, *(r.status for r in found), int(unheard)])
