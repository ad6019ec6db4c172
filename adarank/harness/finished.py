"""A finished run's model again: its base as training found it, then what training made of it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

import adarank
from adarank.errors import SettingError
from adarank.harness.kinds import KINDS
from adarank.harness.measure import choose_device
from adarank.harness.models import Base, Built
from adarank.harness.prepare import configured
from adarank.harness.tasks.base import Task
from adarank.harness.tasks.holdout import hold_out


@dataclass(frozen=True)
class Finished:
    """A finished run. settings: its config.yaml; task: its data; built: its base as it was before training, head
    included, on the device that is used here."""

    folder: Path
    settings: dict[str, Any]
    task: Task
    built: Built
    device: torch.device

    @property
    def model(self) -> nn.Module:
        model: nn.Module = self.built.model
        return model


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of the finished run in `folder`. Raises SettingError where there is none."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        settings: dict[str, Any] = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        raise SettingError(f"{folder} holds no finished run; valid: a run's folder") from None
    if summary.get("status") != "finished":
        raise SettingError(f"{folder} holds no finished run, it {summary.get('status')}; valid: one that finished")
    return settings


def open_run(folder: Path) -> Finished:
    """The run in `folder` with its base built anew, drawn and quantised as it was. Raises SettingError where there is no
    finished run, or its data or model are gone."""
    settings = read_settings(folder)
    device = choose_device()
    task: Task = hold_out(configured(settings["task"]), settings.get("holdout"))
    kind = KINDS[task.kind]
    base: Base = configured(settings["model"])
    torch.manual_seed(settings["seed"])
    built = base.build(kind.outputs(task), kind)
    configured(settings["quantization"], model=built.model, device=device, precision=settings["train"]["precision"])
    built.model.to(device)
    return Finished(folder, settings, task, built, device)


def finish(run: Finished) -> dict[str, nn.Module]:
    """Put the best checkpoint into `run.model`: its adapters, returned by name (none for BitFit), or all its weights.

    Raises SettingError where the folder holds neither.
    """
    folder, weights = run.folder / "adapter", run.folder / "checkpoint" / "model.safetensors"
    if (folder / "adapter.json").is_file():
        made: dict[str, nn.Module] = adarank.load_adapter(run.model, folder)
        run.model.to(run.device)
        return made
    if not weights.is_file():
        raise SettingError(f"{run.folder} holds no adapter/ and no checkpoint/; valid: a run's folder, whole")
    try:
        run.model.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise SettingError(f"{weights} does not fit the run's model ({reason}); valid: the file as written") from None
    return {}
