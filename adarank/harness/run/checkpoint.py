"""A run's state on disk, from which it resumes bit for bit. No pickles are used, and the state is never copied in
memory.

checkpoint/state.safetensors holds the tensors, and its metadata holds everything else as JSON, in which references
replace the tensors: trained parameters, buffers and masks, the optimiser with the controller inside, the learning-rate
curve, the random generators, and the loop's position. checkpoint/best-N.safetensors holds the trained tensors after
step N, the best so far. Every file is replaced as a whole, and tensors are streamed into it. In a run of several
processes rank 0 writes the files and all ranks read them; the run may resume with a different number of processes.
"""

import json
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from adarank.errors import RunFailed
from adarank.harness.run.distributed import is_main, of_all, on_main, rank
from adarank.harness.run.parallel import distribute_like, full_tensor, is_sharded
from adarank.runs.files import ADAPTER, CHECKPOINT, replacing
from adarank.tensor_files import order, write_tensors

STATE = "state.safetensors"
LAST = "last.safetensors"  # the trained tensors of the last step, while the model holds the best
SECONDS, SHARE = 60.0, 0.05  # auto: at least this many seconds apart, and at most this share of the time


@dataclass
class Progress:
    """The position of the loop. step: optimiser steps done; best, best_step: the best metric so far and its step (0 if
    there is none yet); last: the metrics of the last evaluation; seconds: seconds per step, one entry per record;
    train_s, eval_s: seconds so far; rows, tokens: rows and tokens trained on so far, without padding."""

    best: float
    step: int = 0
    best_step: int = 0
    last: dict[str, float] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    train_s: float = 0.0
    eval_s: float = 0.0
    rows: int = 0
    tokens: int = 0


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Everything that training changes: trained parameters, the adapters' λ and masks, buffers. Nothing is copied."""
    kept = {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    kept |= {name for name, _ in model.named_buffers(remove_duplicate=False)}
    return {name: tensor for name, tensor in model.state_dict().items() if name in kept}


def bytes_to_save(model: nn.Module, adapted: bool, adaptive: bool, checkpoints: bool) -> dict[str, int]:
    """{folder: bytes}, the most that a run needs for its weights in each folder.

    A state holds the trained tensors and the optimiser's two averages of each, and a score that adapts ranks keeps up
    to three more. Two states exist while one replaces the other, and up to three best checkpoints: the one that belongs
    to the saved state, a better one, and one that is being written. adapted: whether an adapter trains instead of the
    whole model.
    """
    trained = _size(trained_tensors(model).values())
    whole = 0 if adapted else _size(model.state_dict().values())
    states = 2 * (6 if adaptive else 3) * trained * checkpoints
    return {ADAPTER: trained if adapted else 0, CHECKPOINT: whole + states + 3 * trained}


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def write_sharded(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file on rank 0, completely or not at all. Every rank must call this, because sharded tensors
    are gathered one at a time. Raises OSError on every rank if the file cannot be written."""
    pieces = (full_tensor(tensors[name].detach()) for name in order(tensors))

    def write() -> None:
        try:
            path.parent.mkdir(exist_ok=True)
            with replacing(path) as file:
                write_tensors(file, tensors, metadata, lambda _: next(pieces))
        finally:
            deque(pieces, maxlen=0)  # the other ranks wait for the rest, too

    if not is_main():
        deque(pieces, maxlen=0)
    on_main(write)


class Saver:
    """Saves and loads a run's state. It saves when the loop records, at most every `seconds` (0: at every record; None:
    never; "auto": at most once a minute, and for less than 5 % of the time).

    folder: the run's checkpoint/; resume: whether to continue from the state in it. step: the step from which the run
    continues; None if it starts from the beginning. Raises RunFailed for a damaged file.
    """

    def __init__(self, folder: Path, seconds: float | str | None, resume: bool) -> None:
        self.folder, self.seconds = folder, seconds
        self.step: int | None = None
        self._loaded_best = 0  # the step of the best checkpoint that the loaded state refers to
        if resume and (folder / STATE).is_file():
            with _opened(folder / STATE) as file:
                self.step = dict(json.loads(file.metadata()["outline"])["map"])["step"]
        if len(set(of_all(self.step))) > 1:
            raise RunFailed(
                f"out must be a folder that all nodes share ({folder / STATE} differs between the processes)"
            )
        self._start = self._last = time.monotonic()
        self._spent = self._cost = 0.0  # seconds spent on saving: in total, and on the last state

    def _is_due(self) -> bool:
        now = time.monotonic()
        if self.seconds != "auto":
            return self.seconds is not None and now - self._last >= float(self.seconds)
        return now - self._last >= SECONDS and self._spent + self._cost <= SHARE * (now - self._start)

    def save(self, model: nn.Module, optimizer: Any, scheduler: Any, progress: Progress, at_once: bool = False) -> None:
        """Replace the state if it is due or if `at_once` is set; never if seconds is None.

        Raises OSError if the file cannot be written; the old file then remains intact.
        """
        if self.seconds is None or not (at_once or on_main(self._is_due)):
            return
        began = time.monotonic()
        curve = {name: value for name, value in scheduler.state_dict().items() if name != "lr_lambdas"}
        state = {
            "step": progress.step,
            "model": trained_tensors(model),
            "optimizer": optimizer.state_dict(),
            "scheduler": curve,
            "random": of_all(_random_state()),
            "progress": asdict(progress),
        }
        tensors: dict[str, Tensor] = {}
        outline = json.dumps(_take_out(state, tensors))
        write_sharded(self.folder / STATE, tensors, {"outline": outline})
        on_main(partial(self._drop_best, progress.best_step))
        self._last = time.monotonic()
        self._cost = self._last - began
        self._spent += self._cost

    def keep_best(self, model: nn.Module, step: int) -> None:
        """Write the trained tensors after `step` as the best checkpoint so far. The previous one stays as long as the
        saved state refers to it. Raises OSError."""
        began = time.monotonic()
        write_sharded(self._best(step), trained_tensors(model))
        if self.seconds is None:
            on_main(partial(self._drop_best, step, self._loaded_best))
        self._spent += time.monotonic() - began

    def load_best(self, model: nn.Module, step: int) -> None:
        """Load the best checkpoint, that of `step`, into the model."""
        self._load_trained(self._best(step), model)

    def keep_last(self, model: nn.Module) -> None:
        """Write the current trained tensors for `load_last`."""
        write_sharded(self.folder / LAST, trained_tensors(model))

    def load_last(self, model: nn.Module) -> None:
        """Load the tensors that `keep_last` wrote into the model."""
        self._load_trained(self.folder / LAST, model)

    def _load_trained(self, path: Path, model: nn.Module) -> None:
        own = model.state_dict()
        with _opened(path) as file:
            parts: dict[str, list[str]] = defaultdict(list)  # by module, so that memory never holds the whole file
            for name in file.keys():  # noqa: SIM118
                module, _, part = name.rpartition(".")
                parts[module].append(part)
            for module, names in parts.items():
                prefix = f"{module}." if module else ""
                tensors = {n: distribute_like(file.get_tensor(prefix + n), own[prefix + n]) for n in names}
                model.get_submodule(module).load_state_dict(tensors, strict=False)

    def _best(self, step: int) -> Path:
        return self.folder / f"best-{step}.safetensors"

    def _drop_best(self, *but: int) -> None:
        for path in self.folder.glob("best-*.safetensors"):
            if path not in map(self._best, but):
                path.unlink()

    def load(self, model: nn.Module, optimizer: Any, scheduler: Any) -> Progress | None:
        """Load the saved state into the freshly prepared model, optimiser and scheduler; returns None if the run starts
        from the beginning."""
        if self.step is None:
            return None
        with _opened(self.folder / STATE) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            state = _put_back(json.loads(file.metadata()["outline"]), tensors)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for i, values in state["optimizer"]["state"].items():
            if is_sharded(parameters[i]):
                values |= {
                    k: distribute_like(v, parameters[i]) for k, v in values.items() if v.shape == parameters[i].shape
                }
        optimizer.load_state_dict(state["optimizer"])  # first, because it repeats the compaction
        own = model.state_dict()
        model.load_state_dict(
            {name: distribute_like(tensor, own[name]) for name, tensor in state["model"].items()}, strict=False
        )
        curve = state["scheduler"]
        scheduler.load_state_dict({"lr_lambdas": [None] * len(curve["base_lrs"]), **curve})  # keep the functions
        if rank() < len(state["random"]):  # otherwise this process is new, and its stream starts fresh
            _set_random_state(state["random"][rank()])
        found = Progress(**state["progress"])
        if found.best_step and not self._best(found.best_step).is_file():
            raise RunFailed(f"{self._best(found.best_step)} is missing; force=true starts the run from the beginning")
        self._loaded_best = found.best_step
        return found

    def remove(self) -> None:
        """Delete the files, which a finished run no longer needs."""
        for name in (STATE, LAST):
            (self.folder / name).unlink(missing_ok=True)
        self._drop_best()
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise RunFailed(f"{path} is damaged ({error}); force=true starts the run from the beginning") from None


def _random_state() -> dict[str, Any]:
    cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"][0])


def _take_out(value: Any, tensors: dict[str, Tensor]) -> Any:
    """`value` in a form that JSON can hold; its tensors move to `tensors`. Keys of mappings keep their type."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach()
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
