"""What a triplet is worth: the loss without it, and what the scores say of it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adarank import scores
from adarank.adapters.lowrank import LowRank
from adarank.bank import Bank
from adarank.errors import SettingError
from adarank.harness.data import Encoded, collate, evaluation_order, training_order
from adarank.harness.kinds.classify import task_loss


@torch.no_grad()
def rises(model: nn.Module, adapters: Mapping[str, LowRank], encoded: Encoded, batch: int) -> tuple[float, list[float]]:
    """The mean loss over all rows of `encoded`, and by how much it rises without each triplet, module by module.

    Exact: a forward pass a triplet and batch, without autocast, losses in fp64. λ of one triplet is set to 0 at a time.
    The blocks before the triplet's own (lower places in the same ModuleList) cannot notice: they answer from memory,
    which halves the work.
    """
    model.eval()
    device = next(model.parameters()).device
    places = [(name, i) for name, adapter in adapters.items() for i in range(adapter.rank)]
    blocks = {name: _block(model, name) for name in adapters}
    every = {id(block): block for stack, place in blocks.values() for block in stack[: place + 1]}
    total, without = 0.0, [0.0] * len(places)
    for rows in evaluation_order(encoded, batch):
        inputs, labels = collate(encoded, rows, device)

        def loss(inputs: Any = inputs, labels: Tensor = labels, rows: Any = rows) -> float:
            return task_loss_64(model(**inputs).logits, labels) * len(rows)

        known: dict[int, Any] = {}
        with ExitStack() as hooks:
            for key, block in every.items():
                hooks.callback(block.register_forward_hook(_keep_output(known, key)).remove)
            total += loss()
        for place, (name, i) in enumerate(places):
            stack, own = blocks[name]
            lam = adapters[name].lam
            kept = lam[i].clone()
            lam[i] = 0.0
            with _from_memory([(block, known[id(block)]) for block in stack[:own]]):
                without[place] += loss()
            lam[i] = kept
    return total / len(encoded), [(value - total) / len(encoded) for value in without]


def scores_at_the_end(
    model: nn.Module, adapters: Mapping[str, LowRank], encoded: Encoded, batch: int, passes: int, seed: int
) -> dict[str, list[float]]:
    """{score: its value of every triplet}, at its defaults, for every score that is defined for these adapters.

    What a run averaged while it trained is gone: averages are taken anew, over `passes` training batches at the final
    weights (dropout active, nothing updated). `random` is the control.
    """
    device = next(model.parameters()).device
    factors = {id(p) for adapter in adapters.values() for p in adapter.parameters(recurse=False)}
    for p in model.parameters():
        p.requires_grad_(id(p) in factors)
    bank = Bank(adapters)
    found: dict[str, tuple[Any, Any]] = {}
    for name in scores.__all__:
        make: Any = getattr(scores, name)
        score = make(seed=seed) if name == "random" else make()
        try:
            found[name] = (score, score.init(bank))
        except SettingError:  # it has no meaning for these adapters, λ being constant
            continue
    looking = [score.activation for score, _ in found.values() if score.activation is not None]
    assert len(looking) <= 1, "the bank holds the activations of one score"
    torch.manual_seed(seed)
    model.train()
    order = training_order(len(encoded), batch, seed)
    for _ in range(passes):
        seen: dict[int, Tensor] = {}
        for adapter in adapters.values() if looking else ():
            adapter.watch = _keep_activation(seen, looking[0])
        inputs, labels = collate(encoded, next(order), device)
        model.zero_grad(set_to_none=True)
        task_loss(model(**inputs).logits, labels).backward()
        bank.adopt()
        with torch.no_grad():
            if looking:
                none = bank.triplet_buffer()[:0]  # of a module without triplets, whose path is not run
                bank.activation = torch.cat([seen.get(id(adapter), none) for adapter in bank.adapters])
            for score, buffers in found.values():
                score.observe(buffers, bank)
    for adapter in adapters.values():
        adapter.watch = None
    model.eval()
    with torch.no_grad():
        return {name: score.score(buffers, bank).double().tolist() for name, (score, buffers) in found.items()}


def task_loss_64(logits: Tensor, labels: Tensor) -> float:
    """The task's loss in fp64: a triplet may move it by less than fp32 resolves."""
    return float(
        nn.functional.mse_loss(logits.squeeze(-1).double(), labels.double())
        if labels.is_floating_point()
        else nn.functional.cross_entropy(logits.double(), labels)
    )


def _keep_output(known: dict[int, Any], key: int) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        known[key] = output

    return hook


def _keep_activation(seen: dict[int, Tensor], activation: Callable[..., Tensor]) -> Callable[[LowRank, Tensor], None]:
    def watch(adapter: LowRank, x: Tensor) -> None:
        seen[id(adapter)] = activation(adapter, x.detach()).detach()

    return watch


def _block(model: nn.Module, name: str) -> tuple[list[nn.Module], int]:
    """The outermost ModuleList that holds the module `name`, and its place there; ([], 0) where there is none."""
    parts = name.split(".")
    for length in range(len(parts) - 1):
        parent = model.get_submodule(".".join(parts[:length]))
        if isinstance(parent, nn.ModuleList):
            return list(parent), int(parts[length])
    return [], 0


@contextmanager
def _from_memory(known: list[tuple[nn.Module, Any]]) -> Iterator[None]:
    """Each of the modules answers with what stands beside it, whatever it is given."""
    with ExitStack() as stack:
        for module, output in known:
            module.forward = lambda *_, output=output, **__: output  # type: ignore[method-assign]
            stack.callback(module.__dict__.pop, "forward")
        yield
