"""What every score says of the triplets of a finished model."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adarank import scores
from adarank.adapters.lowrank import LowRank
from adarank.bank import Bank
from adarank.errors import SettingError
from adarank.harness.data import training_order
from adarank.harness.kinds import Kind


def scores_at_the_end(
    model: nn.Module, adapters: Mapping[str, LowRank], rows: Any, kind: Kind, batch: int, passes: int, seed: int
) -> dict[str, list[float]]:
    """{score: its value of every triplet}, at its defaults, for every score that is defined for these adapters. rows:
    those of training, as `kind` encoded them.

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
    order = training_order(len(rows), batch, seed)
    for _ in range(passes):
        seen: dict[int, Tensor] = {}
        for adapter in adapters.values() if looking else ():
            adapter.watch = _keep_activation(seen, looking[0])
        model.zero_grad(set_to_none=True)
        kind.loss(model, kind.collate(rows, next(order), device)).backward()
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


def _keep_activation(seen: dict[int, Tensor], activation: Callable[..., Tensor]) -> Callable[[LowRank, Tensor], None]:
    def watch(adapter: LowRank, x: Tensor) -> None:
        seen[id(adapter)] = activation(adapter, x.detach()).detach()

    return watch
