"""What a score is."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from adarank.bank import Bank

Buffers = dict[str, Tensor]


class Score(NamedTuple):
    """Three functions. `init(bank)` makes the running buffers, `observe(buffers, bank)` updates them in place from
    `bank.weight` and `bank.grad` once per optimiser step, `score(buffers, bank)` returns the importance of every
    triplet, [triplets], without changing anything. Buffers travel in the optimiser's state dict."""

    init: Callable[[Bank], Buffers]
    observe: Callable[[Buffers, Bank], None]
    score: Callable[[Buffers, Bank], Tensor]
