"""The model of a finished run: its base before training, then its trained weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from adarank.adapters.saving import put_adapter, read_adapter
from adarank.errors import SettingError
from adarank.harness.config.spec import Spec, spec_of
from adarank.harness.data.tasks.base import Task
from adarank.harness.device import choose_device
from adarank.harness.models import Built
from adarank.harness.run.prepare import store
from adarank.harness.run.resolve import build, load_base, load_task
from adarank.runs.files import ADAPTER, CHECKPOINT, CONFIG, SUMMARY, read_object

DESCRIPTION = "adapter.json"  # in the folder of an adapter
WEIGHTS = Path(CHECKPOINT, "model.safetensors")  # of a run without an adapter, in its folder


@dataclass(frozen=True)
class FinishedRun:
    """A finished run. spec: its settings; task: its data; built: its base with the head as before training."""

    folder: Path
    spec: Spec
    task: Task
    built: Built
    device: torch.device

    @property
    def model(self) -> nn.Module:
        return self.built.model


def read_spec(folder: Path) -> Spec:
    """The settings of the finished run in `folder`, with the original paths of its data and model, whatever the working
    directory. Raises SettingError if there is none."""
    summary, fault = read_object(folder / SUMMARY)
    try:
        record: Any = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        record = None
    if fault or not summary or not isinstance(record, dict):
        raise SettingError(
            f"{folder} must be the folder of a finished run ({SUMMARY} or {CONFIG} is missing or damaged)"
        )
    if summary.get("status") != "finished":
        raise SettingError(f"{folder} must be the folder of a finished run (its status is {summary.get('status')})")
    return spec_of(record, summary.get("paths"))


def open_run(folder: Path) -> FinishedRun:
    """The run in `folder` with its base rebuilt, initialised and quantised in the same way.

    Raises SettingError if there is no finished run, or its data or model are no longer available.
    """
    spec = read_spec(folder)
    task, base, device = load_task(spec), load_base(spec), choose_device()
    built = build(spec, task, base, device)
    built.model.to(device)
    return FinishedRun(folder, spec, task, built, device)


def has_weights(folder: Path) -> bool:
    """Whether `load_trained_weights` finds the weights of the run in `folder`."""
    return (folder / ADAPTER / DESCRIPTION).is_file() or (folder / WEIGHTS).is_file()


def load_trained_weights(run: FinishedRun) -> dict[str, nn.Module]:
    """Load the best checkpoint into `run.model`: its adapters, returned by name (none for BitFit), or all its weights.

    Raises SettingError if the folder holds neither.
    """
    folder, weights = run.folder / ADAPTER, run.folder / WEIGHTS
    if (folder / DESCRIPTION).is_file():
        tensors, description = read_adapter(folder)
        for name, parameter in run.model.named_parameters():
            if name in description["trained"]:
                parameter.data = parameter.data.to(tensors[name].dtype)  # loading must not round trained weights
        adapters: dict[str, nn.Module] = put_adapter(run.model, tensors, description, folder)
        store(run.model, run.built.dtype)
        run.model.to(run.device)
        return adapters
    if not has_weights(run.folder):
        raise SettingError(f"{run.folder} has no trained weights; it must hold adapter/ or checkpoint/")
    try:
        run.model.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise SettingError(f"{weights} does not fit the run's model ({reason})") from None
    return {}
