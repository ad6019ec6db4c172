"""What a score is."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from adarank.adapters.lowrank import LowRank
from adarank.bank import Bank

Buffers = dict[str, Tensor]


class Score(NamedTuple):
    """`init(bank)` makes the running buffers, `observe(buffers, bank)` updates them in place from `bank.weight` and
    `bank.grad` once per optimiser step, `score(buffers, bank)` returns the importance of every triplet, [triplets],
    without changing anything. A buffer is flat over the parameters ([numel], `bank.buffer()`), over the triplets
    ([triplets]) or a scalar; buffers travel in the optimiser's state dict, shrink with compaction and are zeroed where a
    triplet starts anew.

    activation(adapter, x [..., d_in]) -> [r], for scores that look at activations: something of every triplet, averaged
    over the rows of x. Its mean over the forward passes since the last step is then `bank.activation`, [triplets].
    """

    init: Callable[[Bank], Buffers]
    observe: Callable[[Buffers, Bank], None]
    score: Callable[[Buffers, Bank], Tensor]
    activation: Callable[[LowRank, Tensor], Tensor] | None = None
