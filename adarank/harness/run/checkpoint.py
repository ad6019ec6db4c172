"""A run's state on disk, from which it resumes as if it had never stopped: one file, replaced as a whole, no pickle.

checkpoint/state.safetensors holds the tensors, and its metadata everything else as JSON, with a reference in place of
each tensor: trained parameters, buffers and masks, the optimiser with the controller inside, the learning-rate curve,
the random generators, and the loop's position. In a run of several processes rank 0 writes the file and all read it; the
run may resume in another number of processes.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from adarank.errors import RunFailed
from adarank.harness.run.distributed import of_all, on_main, rank
from adarank.harness.run.parallel import distribute_like, full_tensor, is_sharded
from adarank.runs.files import ADAPTER, CHECKPOINT, write_bytes

STATE = "state.safetensors"


@dataclass
class Progress:
    """Where the loop stands. step: optimiser steps done; best, best_step, best_state: the best checkpoint so far; last:
    the metrics of the last evaluation; seconds: of a step, one entry a record; train_s, eval_s: seconds so far."""

    best: float
    step: int = 0
    best_step: int = 0
    best_state: dict[str, Tensor] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    train_s: float = 0.0
    eval_s: float = 0.0


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of everything that training changes: trained parameters, the adapters' λ and masks, buffers."""
    return {name: tensor.clone() for name, tensor in _trained(model).items()}


def _trained(model: nn.Module) -> dict[str, Tensor]:
    kept = {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    kept |= {name for name, _ in model.named_buffers(remove_duplicate=False)}
    return {name: tensor for name, tensor in model.state_dict().items() if name in kept}


def bytes_to_save(model: nn.Module, adapted: bool, adaptive: bool, checkpoints: bool) -> dict[str, int]:
    """{folder: bytes} that a run's folder needs for its weights at most.

    A checkpoint holds what training changes twice (last and best) and the optimiser's two averages of it, and a score
    that adapts ranks has up to three more. There are two checkpoints while one replaces the other. adapted: whether an
    adapter trains, and not the whole model.
    """
    trained = _size(_trained(model).values())
    whole = 0 if adapted else _size(model.state_dict().values())
    return {ADAPTER: trained if adapted else 0, CHECKPOINT: whole + 2 * (7 if adaptive else 4) * trained * checkpoints}


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class Saver:
    """Saves at the loop's records, at most every `seconds` (0: at every record; None: never), and loads.

    folder: the run's checkpoint/; resume: whether to continue from the state in it. step: the step that the run
    continues from; None where it starts from the beginning. Raises RunFailed for a damaged file.
    """

    def __init__(self, folder: Path, seconds: float | None, resume: bool) -> None:
        self.folder, self.seconds = folder, seconds
        self.step: int | None = None
        if resume and (folder / STATE).is_file():
            with self._opened() as file:
                self.step = dict(json.loads(file.metadata()["outline"])["map"])["step"]
        if len(set(of_all(self.step))) > 1:
            raise RunFailed(
                f"out must be a folder that all nodes share ({folder / STATE} is not the same for every process)"
            )
        self._last = time.monotonic()

    def save(self, model: nn.Module, optimizer: Any, scheduler: Any, progress: Progress, at_once: bool = False) -> None:
        """Replace the file if `seconds` have passed since it was last written, or at once; never where seconds is None.

        Raises OSError where the file cannot be written; the old one is whole then.
        """
        if self.seconds is None:
            return
        seconds = self.seconds
        if not at_once and not on_main(lambda: time.monotonic() - self._last >= seconds):
            return
        curve = {name: value for name, value in scheduler.state_dict().items() if name != "lr_lambdas"}
        state = {
            "step": progress.step,
            "model": trained_state(model),
            "optimizer": optimizer.state_dict(),
            "scheduler": curve,
            "random": of_all(_random_state()),
            "progress": asdict(progress),
        }
        tensors: dict[str, Tensor] = {}
        outline = json.dumps(_take_out(state, tensors))
        on_main(lambda: self._write(save(tensors, metadata={"outline": outline})))
        self._last = time.monotonic()

    def _write(self, data: bytes) -> None:
        self.folder.mkdir(exist_ok=True)
        write_bytes(self.folder / STATE, data)

    def load(self, model: nn.Module, optimizer: Any, scheduler: Any) -> Progress | None:
        """Put the saved state into freshly prepared pieces; None where the run starts from the beginning."""
        if self.step is None:
            return None
        with self._opened() as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            state = _put_back(json.loads(file.metadata()["outline"]), tensors)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for i, values in state["optimizer"]["state"].items():
            if is_sharded(parameters[i]):
                values |= {
                    k: distribute_like(v, parameters[i]) for k, v in values.items() if v.shape == parameters[i].shape
                }
        optimizer.load_state_dict(state["optimizer"])  # first: it drops what compaction had dropped
        own = model.state_dict()
        model.load_state_dict(
            {name: distribute_like(tensor, own[name]) for name, tensor in state["model"].items()}, strict=False
        )
        curve = state["scheduler"]
        scheduler.load_state_dict({"lr_lambdas": [None] * len(curve["base_lrs"]), **curve})  # the functions stay
        if rank() < len(state["random"]):  # else there are more processes now, and this one's stream begins
            _set_random_state(state["random"][rank()])
        found = Progress(**state["progress"])
        found.best_state = {name: distribute_like(tensor, own[name]) for name, tensor in found.best_state.items()}
        return found

    def remove(self) -> None:
        """Delete the file, which a finished run does not need."""
        (self.folder / STATE).unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        path = self.folder / STATE
        try:
            with safe_open(path, framework="pt") as file:
                yield file
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise RunFailed(f"{path} is damaged ({error}); force=true starts the run again") from None


def _random_state() -> dict[str, Any]:
    cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"][0])


def _take_out(value: Any, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON can hold it; tensors go into `tensors`. Keys of mappings keep their type."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = full_tensor(value.detach()).cpu().clone().contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"map": [[key, _take_out(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_take_out(item, tensors) for item in value]}
    if isinstance(value, np.generic):
        return value.item()
    return value


def _put_back(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "list" in value:
        return [_put_back(item, tensors) for item in value["list"]]
    return {key: _put_back(item, tensors) for key, item in value["map"]}
