"""Records the activations that a score needs from the adapters' forward passes."""

import weakref
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from adarank.adapters.lowrank import LowRank
from adarank.bank import Bank


class ActivationRecorder:
    """Records `activation(adapter, x)` -> [r] in every training pass of the bank's adapters; `mean` averages it.

    activation: see `adarank.scores.score.Score`. Copies of an adapter (in a copied model) are not recorded.
    """

    def __init__(self, bank: Bank, activation: Callable[[LowRank, Tensor], Tensor]) -> None:
        self.bank, self.activation = bank, activation
        for i, adapter in enumerate(bank.adapters):
            adapter.watch = partial(_record, weakref.ref(self), i)
        self.reset()

    def reset(self) -> None:
        """Discard the records, and from now on record with the adapters' current ranks."""
        self.sums = [torch.zeros(a.rank, dtype=self.bank.dtype, device=a.Q.device) for a in self.bank.adapters]
        self.passes = [0] * len(self.sums)

    def mean(self) -> Tensor:
        """Return the mean over the passes since the last call and over the processes of torch.distributed, [triplets],
        and reset."""
        like = self.bank.triplet_buffer()  # the model may have moved since the last pass
        means = torch.cat([(s / max(n, 1)).to(like) for s, n in zip(self.sums, self.passes, strict=True)])
        self.reset()
        # data-parallel training averages gradients over the processes, but not these records
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(means)
            means /= torch.distributed.get_world_size()
        return means


def _record(reference: "weakref.ref[ActivationRecorder]", i: int, adapter: LowRank, x: Tensor) -> None:
    recorder = reference()
    if recorder is None or recorder.bank.adapters[i] is not adapter or not x.numel():
        return  # a pass without rows (an expert without tokens) has no mean
    x = x.detach()
    if x.is_floating_point():  # an embedding's indices are not
        x = x.to(torch.promote_types(adapter.Q.dtype, torch.float32))
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        values = recorder.activation(adapter, x)
    recorder.sums[i] = recorder.sums[i] + values if recorder.passes[i] else values
    recorder.passes[i] += 1
