"""What a triplet is worth: the loss without it."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from adarank.adapters.lowrank import LowRank
from adarank.harness.data import evaluation_order
from adarank.harness.kinds import Kind


class Part(NamedTuple):
    """One batch. units: its rows, or the tokens that its loss is a mean over; loss: summed over them; without: the same
    without each triplet, module by module."""

    units: int
    loss: float
    without: list[float]


@torch.no_grad()
def parts(
    model: nn.Module, adapters: Mapping[str, LowRank], rows: Any, kind: Kind, count: int, batch: int, begin: int = 0
) -> Iterator[Part]:
    """The losses of every batch of the first `count` of `rows`, which `kind` encoded, from number `begin` on, in
    evaluation's order.

    Exact: a forward pass a triplet and batch, without autocast, losses in fp64. λ of one triplet is set to 0 at a time.
    The blocks before the triplet's own (lower places in the same ModuleList) cannot notice: they answer from memory,
    which halves the work.
    """
    precise = Precise(model).eval()
    device = next(model.parameters()).device
    places = [(name, i) for name, adapter in adapters.items() for i in range(adapter.rank)]
    blocks = {name: _block(model, name) for name in adapters}
    every = {id(block): block for stack, place in blocks.values() for block in stack[: place + 1]}
    order = evaluation_order(rows.lengths[:count], batch)[begin:]
    left = len(order) * len(places)
    with tqdm(total=left, unit="triplet", disable=not sys.stderr.isatty(), dynamic_ncols=True, leave=False) as bar:
        for chosen in order:
            inputs, units = kind.collate(rows, chosen, device), kind.units(rows, chosen)

            def loss(inputs: Any = inputs, units: int = units) -> float:
                return kind.loss(precise, inputs).item() * units

            known: dict[int, Any] = {}
            with ExitStack() as hooks:
                for key, block in every.items():
                    hooks.callback(block.register_forward_hook(_keep_output(known, key)).remove)
                whole = loss()
            without = []
            for name, i in places:
                stack, own = blocks[name]
                lam = adapters[name].lam
                kept = lam[i].clone()
                lam[i] = 0.0
                with _from_memory([(block, known[id(block)]) for block in stack[:own]]):
                    without.append(loss())
                lam[i] = kept
                bar.update()
            yield Part(units, whole, without)


def rises(found: Sequence[Part]) -> tuple[float, list[float]]:
    """(mean loss, its rise without each triplet) over all units of `found`."""
    units, total = sum(part.units for part in found), sum(part.loss for part in found)
    without = [sum(values) for values in zip(*(part.without for part in found), strict=True)]
    return total / units, [(value - total) / units for value in without]


def halves(found: Sequence[Part]) -> list[list[float]] | None:
    """The rises over every other batch, and over the batches between: how far they agree says how well the rows tell
    what a triplet is worth. None for a single batch."""
    return [rises(found[0::2])[1], rises(found[1::2])[1]] if len(found) > 1 else None


class Precise(nn.Module):
    """A model whose logits are in fp64, and so its loss: a triplet may move it by less than fp32 resolves."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Any:
        found = self.model(**inputs)
        for key in [key for key in found if key.endswith("logits")]:
            found[key] = found[key].double()
        return found


def _keep_output(known: dict[int, Any], key: int) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        known[key] = output

    return hook


def _block(model: nn.Module, name: str) -> tuple[list[nn.Module], int]:
    """The outermost ModuleList that holds the module `name`, and its place there; ([], 0) where there is none."""
    path = name.split(".")
    for length in range(len(path) - 1):
        parent = model.get_submodule(".".join(path[:length]))
        if isinstance(parent, nn.ModuleList):
            return list(parent), int(path[length])
    return [], 0


@contextmanager
def _from_memory(known: list[tuple[nn.Module, Any]]) -> Iterator[None]:
    """Each of the modules answers with what stands beside it, whatever it is given."""
    with ExitStack() as stack:
        for module, output in known:
            module.forward = lambda *_, output=output, **__: output  # type: ignore[method-assign]
            stack.callback(module.__dict__.pop, "forward")
        yield
