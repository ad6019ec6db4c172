"""hydra/sweeper=optuna_lr: searches for a method's learning rate with Optuna, by the best dev metric.

Optuna provides trials, sampler and storage. This file centres the interval on the method's own rate, which is tried
first, names the study after the fixed settings, and resumes an interrupted search up to n_trials when the same command
is repeated.
"""

import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

LR = "train.lr"
NEUTRAL = (
    "out",
    "force",
    "retry",
    "fail_fast",
    "tracker",
    "checkpoint_seconds",
)  # settings that do not affect the result


class Study(Sweeper):  # type: ignore[misc]
    """around: the interval is from the method's rate ÷ around to its rate · around, on a logarithmic scale; n_trials:
    the total number of trials, including those that ended or failed in earlier calls; hydra_optuna_sweeper gets the
    rest."""

    def __init__(self, around: float, storage: str, n_trials: int, **optuna_sweeper: Any) -> None:
        if find_spec("hydra_plugins.hydra_optuna_sweeper") is None:
            raise HydraException("hydra/sweeper=optuna_lr needs Optuna: pip install 'adarank[optuna]'")
        if not around > 1:
            raise HydraException(f"hydra.sweeper.around must be greater than 1 (got {around})")
        self.around, self.storage, self.n_trials, self.rest = around, storage, n_trials, optuna_sweeper

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        if config.fail_fast:
            raise HydraException(
                "fail_fast must be false with hydra/sweeper=optuna_lr, for which a failed trial is a result (got true)"
            )
        self.context = {"hydra_context": hydra_context, "task_function": task_function, "config": config}
        self.lr = float(config.train.lr)

    def sweep(self, arguments: list[str]) -> None:
        """Search until n_trials have ended."""
        import optuna
        from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        name, direction = study_name(arguments), self.rest["direction"]
        study = optuna.create_study(
            study_name=name, storage=self.storage, direction=str(direction), load_if_exists=True
        )
        with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
            for rate in interrupted(study) if study.trials else [self.lr]:
                study.enqueue_trial({LR: rate})
        left = max(0, self.n_trials - sum(trial.state.is_finished() for trial in study.trials))
        params = {LR: f"tag(log, interval({self.lr / self.around!r}, {self.lr * self.around!r}))"}
        sweeper = OptunaSweeper(
            **{**self.rest, "study_name": name, "storage": self.storage, "n_trials": left, "params": params}
        )
        sweeper.setup(**self.context)
        try:
            sweeper.sweep(arguments)
        except ValueError as error:  # Optuna has no best trial
            raise HydraException(f"hydra/sweeper=optuna_lr: no trial gave a metric ({error})") from None
        best = optuna.load_study(study_name=name, storage=self.storage).best_trial
        found = f"{LR}={best.params[LR]:.3g} is the best of {self.n_trials} trials"
        print(f"search: {found}, {best.value:.4f} on dev ({name})")


def interrupted(study: Any) -> list[float]:
    """Rates of trials that have neither ended nor are waiting: their process was killed, and their runs will resume."""
    running: set[float | None] = set()
    others: set[float | None] = set()
    for trial in study.trials:
        rate = trial.params.get(LR, trial.system_attrs.get("fixed_params", {}).get(LR))
        (running if trial.state.name == "RUNNING" else others).add(rate)
    return sorted(rate for rate in running - others if rate is not None)


def study_name(arguments: Sequence[str]) -> str:
    """The settings that a search holds fixed, as typed."""
    keys = {word: word.partition("=")[0].partition(".")[0] for word in arguments}
    return " ".join(sorted(word for word, key in keys.items() if key not in NEUTRAL))
