"""What a score is."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from adarank.adapters.lowrank import LowRank
from adarank.bank import Bank
from adarank.errors import SettingError

Buffers = dict[str, Tensor]


class Score(NamedTuple):
    """`init(bank)` makes the running buffers, `observe(buffers, bank)` updates them in place from `bank.weight` and
    `bank.grad` once per optimiser step, `score(buffers, bank)` returns the importance of every triplet, [triplets],
    without changing anything. A buffer is flat over the parameters ([numel], `bank.buffer()`), over the triplets
    ([triplets]) or a scalar; buffers travel in the optimiser's state dict, shrink with compaction and are zeroed where a
    triplet starts anew.

    activation(adapter, x) -> [r], for scores that look at activations: something of every triplet, averaged over the
    rows of the layer's input x (at least fp32, an embedding's x int64; outside autocast). Its mean over the forward
    passes since the last step is then `bank.activation`, [triplets].
    """

    init: Callable[[Bank], Buffers]
    observe: Callable[[Buffers, Bank], None]
    score: Callable[[Buffers, Bank], Tensor]
    activation: Callable[[LowRank, Tensor], Tensor] | None = None


def check_beta(name: str, value: float) -> None:
    """Raise SettingError for a smoothing factor outside [0, 1)."""
    if not 0 <= value < 1:
        raise SettingError(f"score.{name}={value} is no smoothing factor; valid: 0 <= {name} < 1")


def check_lam_learns(name: str, bank: Bank) -> None:
    """Raise SettingError where λ, which the score `name` reads, is a constant."""
    if any(adapter.kind == "lora" for adapter in bank.adapters):
        raise SettingError(
            f"score={name} has no meaning for adapter='lora', whose λ is constant; valid: adapter='svd', or "
            "score=contribution, which is |λ| times the norms of P and Q"
        )


def averaged(values: Callable[[Bank], Tensor], beta: float) -> Score:
    """The exponential average of a value per parameter, summed up per triplet.

    values(bank) -> flat [numel], at least fp32. A ← β A + (1−β) triplet_sums(values), from zero, uncorrected; the score
    is A. `Bank.triplet_sums` is linear, so that this is the sum over the average of every parameter's value.
    """
    check_beta("beta", beta)

    def init(bank: Bank) -> Buffers:
        return {"average": bank.triplet_buffer()}

    def observe(buffers: Buffers, bank: Bank) -> None:
        buffers["average"].lerp_(bank.triplet_sums(values(bank)), 1 - beta)

    def score(buffers: Buffers, bank: Bank) -> Tensor:
        return buffers["average"].clone()

    return Score(init, observe, score)
