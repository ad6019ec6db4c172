"""Ablations: the increase of the loss when a single triplet is removed."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from adarank.adapters.lowrank import LowRank
from adarank.harness.data.batches import evaluation_order
from adarank.harness.data.task_types import TaskType
from adarank.runs.modules import place_of


class Ablation(NamedTuple):
    """One batch. units: the rows or tokens over which its loss is a mean; loss: the sum over them; without: the same
    sum without each triplet that is not pruned, module by module."""

    units: int
    loss: float
    without: list[float]


@torch.no_grad()
def ablate(
    model: nn.Module,
    adapters: Mapping[str, LowRank],
    rows: Any,
    task_type: TaskType,
    count: int,
    batch: int,
    begin: int = 0,
) -> Iterator[Ablation]:
    """Ablate every active triplet on each batch of the first `count` of `rows` in evaluation order, from batch `begin`.

    rows: as `task_type` encoded them; batch: rows of a forward pass. λ of one triplet at a time is set to 0, and a
    forward pass without autocast gives the loss, from float64 logits. The result is exact: only outputs of blocks that
    ran before the triplet's block, which cannot depend on it, are cached. That includes the encoder for triplets in a
    decoder.
    """
    precise = DoubleLogits(model).eval()
    device = next(model.parameters()).device
    masks = {name: adapter.mask.tolist() for name, adapter in adapters.items()}
    triplets = [(name, i) for name, mask in masks.items() for i, active in enumerate(mask) if active]
    names = {*adapters, *(name for name, _ in model.named_modules() if place_of(name).block is not None)}
    units = {unit: model.get_submodule(unit) for unit in sorted({unit_of(name) for name in names})}
    order = evaluation_order(rows.lengths[:count], batch, fill=False)[begin:]
    total = len(order) * len(triplets)
    calls: list[str] = []
    outputs: dict[str, Any] = {}

    def record(unit: str, _: nn.Module, __: Any, output: Any) -> None:
        calls.append(unit)
        outputs[unit] = output

    with tqdm(total=total, unit="triplet", disable=not sys.stderr.isatty(), dynamic_ncols=True, leave=False) as bar:
        for numbers in order:
            inputs, weight = task_type.collate(rows, numbers, device), task_type.units(rows, numbers)
            calls.clear()
            with ExitStack() as hooks:
                for unit, module in units.items():
                    hooks.callback(module.register_forward_hook(partial(record, unit)).remove)
                loss = task_type.loss(precise, inputs).item() * weight
            without = []
            for name, i in triplets:
                lam = adapters[name].lam
                kept = lam[i].clone()
                lam[i] = 0.0
                earlier = earlier_calls(calls, unit_of(name))
                with _cached([(units[unit], outputs[unit]) for unit in earlier]):
                    without.append(task_type.loss(precise, inputs).item() * weight)
                lam[i] = kept
                bar.update()
            yield Ablation(weight, loss, without)


def unit_of(name: str) -> str:
    """The name of the block that holds the module `name`; the module itself outside every block."""
    place = place_of(name)
    return name if place.block is None else f"{place.stack}.{place.block}".lstrip(".")


def earlier_calls(calls: Sequence[str], unit: str) -> list[str]:
    """The units whose only call came before the first call of `unit`. calls: names in the order of a forward pass."""
    before = calls[: calls.index(unit)] if unit in calls else []
    return [each for each in before if calls.count(each) == 1]


def loss_increase(ablations: Sequence[Ablation]) -> tuple[float, list[float]]:
    """(mean loss, increase of the mean loss without each triplet) over all units of `ablations`."""
    units, total = sum(part.units for part in ablations), sum(part.loss for part in ablations)
    without = [sum(losses) for losses in zip(*(part.without for part in ablations), strict=True)]
    return total / units, [(loss - total) / units for loss in without]


def halves(ablations: Sequence[Ablation]) -> list[list[float]] | None:
    """The loss increases over the even and over the odd batches, whose agreement tells how reliable they are. None for
    a single batch."""
    return [loss_increase(ablations[i::2])[1] for i in (0, 1)] if len(ablations) > 1 else None


class DoubleLogits(nn.Module):
    """A model that returns its logits in float64: a triplet may change the loss by less than float32 resolves."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Any:
        out = self.model(**inputs)
        for key in [key for key in out if key.endswith("logits")]:
            out[key] = out[key].double()
        return out


@contextmanager
def _cached(outputs: Sequence[tuple[nn.Module, Any]]) -> Iterator[None]:
    """Inside the `with`, each module returns the output given for it, whatever its input."""
    with ExitStack() as stack:
        for module, output in outputs:
            module.forward = lambda *_, output=output, **__: output  # type: ignore[method-assign]
            stack.callback(module.__dict__.pop, "forward")
        yield
