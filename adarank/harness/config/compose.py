"""Compose and check the settings of a command line without starting a run."""

from collections.abc import Sequence

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from adarank.harness.config.spec import Spec, register
from adarank.harness.config.validate import conf_folder, settle


def compose(overrides: Sequence[str]) -> tuple[DictConfig, DictConfig]:
    """(the run's configuration, Hydra's own configuration), as `adarank run` composes them. Hydra's errors pass
    through."""
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = hydra_compose("config", list(overrides), return_hydra_config=True)
    OmegaConf.set_struct(config, False)
    return config, config.pop("hydra")


def spec_from(overrides: Sequence[str]) -> Spec:
    """The checked settings that `adarank run` with these overrides would train with.

    >>> spec_from(["method=lora", "rank=4"]).train.lr
    0.001

    Raises SettingError if a setting cannot be used.
    """
    config, hydra = compose(overrides)
    return settle(config, overrides, dict(hydra.runtime.choices))
