"""What scores that look at activations hear of the adapters' forward passes."""

import weakref
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from adarank.adapters.lowrank import LowRank
from adarank.bank import Bank


class Ears:
    """Listens to every training pass of the bank's adapters; `mean` is what they said since it was asked last.

    activation(adapter, x) -> [r]: as `scores.score.Score` has it. A copy of an adapter (in a copied model) is not heard.
    """

    def __init__(self, bank: Bank, activation: Callable[[LowRank, Tensor], Tensor]) -> None:
        self.bank, self.activation = bank, activation
        for i, adapter in enumerate(bank.adapters):
            adapter.watch = partial(_hear, weakref.ref(self), i)
        self.forget()

    def forget(self) -> None:
        """Start anew, with the adapters as they are now."""
        self.heard = [torch.zeros(a.rank, dtype=self.bank.dtype, device=a.Q.device) for a in self.bank.adapters]
        self.passes = [0] * len(self.heard)

    def mean(self) -> Tensor:
        """Over the passes since the last call and the processes of torch.distributed, [triplets]; then forgets."""
        like = self.bank.triplet_buffer()  # the model may have moved since it was last heard
        means = torch.cat([(s / max(n, 1)).to(like) for s, n in zip(self.heard, self.passes, strict=True)])
        self.forget()
        # gradients are averaged over the processes of a data-parallel run already; what they heard is not
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(means)
            means /= torch.distributed.get_world_size()
        return means


def _hear(listener: "weakref.ref[Ears]", i: int, adapter: LowRank, x: Tensor) -> None:
    ears = listener()
    if ears is None or ears.bank.adapters[i] is not adapter:
        return
    x = x.detach()
    if x.is_floating_point():  # an embedding's indices are not
        x = x.to(torch.promote_types(adapter.Q.dtype, torch.float32))
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        found = ears.activation(adapter, x)
    ears.heard[i] = ears.heard[i] + found if ears.passes[i] else found
    ears.passes[i] += 1
