"""From the command line to a composed configuration, and from an error to one sentence and an exit status.

Only Hydra is imported here; what trains is imported inside the task, so that --cfg job answers at once.
Exit status: 0 done; 2 a setting cannot be used; 1 a run failed.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from adarank.errors import RunFailed, SettingError
from adarank.harness import schema
from adarank.harness.complaints import sentence
from adarank.harness.lock import Held
from adarank.harness.settings import conf_folder


def job(config: DictConfig) -> None:
    """One run of what may be a sweep."""
    from adarank.harness.execute import execute

    hydra_config = HydraConfig.get()
    try:
        execute(config, list(hydra_config.overrides.task), dict(hydra_config.runtime.choices))
    except Held as held:
        if hydra_config.mode != RunMode.MULTIRUN:
            raise
        print(
            f"{held}; skipped here", flush=True
        )  # a duplicate in a parallel sweep, or another sweep over the same runs


def guarded(work: Callable[[], Any]) -> int:
    """Do `work`; an error that a user can mend becomes one sentence and a status."""
    try:
        work()
    except (SettingError, HydraException, OmegaConfBaseException, OSError) as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        return 2
    except RunFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def main() -> int:
    """Run what sys.argv asks for; returns the exit status. In a sweep a failed job is reported and the rest goes on."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors through to the sentences
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads starve each other beside a busy core
    schema.register()
    statuses = [0]

    def task(config: DictConfig) -> None:
        statuses.append(guarded(lambda: job(config)))

    def compose() -> None:
        hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")(task)()

    try:
        statuses.append(guarded(compose))
    except KeyboardInterrupt:
        print("interrupted; the same command starts the unfinished run again", file=sys.stderr)
        return 130
    failed = sum(status != 0 for status in statuses)
    if failed > 1:
        print(f"{failed} of {len(statuses) - 2} runs failed, see above", file=sys.stderr)
    return max(statuses)
