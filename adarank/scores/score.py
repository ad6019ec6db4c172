"""The class behind every score, and functions that several scores share."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from adarank.adapters.lowrank import LowRank
from adarank.bank import Bank
from adarank.errors import SettingError, number

Buffers = dict[str, Tensor]


def undefined(buffers: Buffers, bank: Bank) -> Tensor:
    raise NotImplementedError("this Score was made without its function `score`")


class Score(NamedTuple):
    """The importance of every triplet, from weights, gradients or activations.

    init(bank) -> buffers: creates the running averages, {name: tensor}. Each is flat over the parameters ([numel], like
    `bank.buffer()`), over the triplets ([triplets], or [triplets, k]) or a scalar. They are saved in the optimiser's
    state dict, shrink with compaction and are zeroed for a triplet that restarts. A scalar called "path" multiplies λ
    in training passes, for plain adapters only, until the last observed step; afterwards it is 1.

    observe(buffers, bank): updates the buffers in place from `bank.weight` and `bank.grad`, once per optimiser step.

    score(buffers, bank) -> [triplets]: the importance of every triplet, at least fp32. It changes nothing.

    activation(adapter, x) -> [r]: for scores that use activations. It reduces a layer's input x (at least fp32; int64
    for an embedding; outside autocast) to one value per triplet, averaged over the rows of x. The mean over the forward
    passes since the last step, and over the processes of torch.distributed, is then `bank.activation`, [triplets].

    restart(buffers, bank): for scores over the steps since the last allocation. It is called after each allocation, and
    when the steps before the first one end (`schedule.begin`), and changes the buffers in place.

    A score without running averages needs only `score`: Score(score=lambda buffers, bank: bank.lam.abs()).
    RankController also accepts a plain function bank -> [triplets].
    """

    init: Callable[[Bank], Buffers] = lambda bank: {}
    observe: Callable[[Buffers, Bank], None] = lambda buffers, bank: None
    score: Callable[[Buffers, Bank], Tensor] = undefined
    activation: Callable[[LowRank, Tensor], Tensor] | None = None
    restart: Callable[[Buffers, Bank], None] = lambda buffers, bank: None


def as_score(score: Score | Callable[[Bank], Tensor]) -> Score:
    """`score` itself, or the Score of a plain function bank -> [triplets]."""
    return score if isinstance(score, Score) else Score(score=lambda buffers, bank: score(bank))


def smoothing(name: str, value: float) -> float:
    """The smoothing factor score.`name`, in [0, 1); else raises SettingError."""
    beta: float = number(f"score.{name}", value, "at least 0 and below 1", lambda beta: 0 <= beta < 1)
    return beta


def refuse_constant_lambda(name: str) -> Callable[[Bank], Buffers]:
    """The `init` of the score `name`, which reads λ: raises SettingError if an adapter's λ is constant."""

    def init(bank: Bank) -> Buffers:
        if not all(adapter.learns_lambda for adapter in bank.adapters):
            raise SettingError(
                f"score={name} needs adapters whose λ is trained, such as adapter='svd' (got adapter='lora', whose λ "
                "is constant); score=contribution, which is |λ| times the norms of P and Q, works with both"
            )
        return {}

    return init


def module_sums(values: Tensor, bank: Bank) -> Tensor:
    """The sum of `values` [triplets] over each module, [modules], as a matrix product, which is deterministic."""
    indices = torch.arange(len(bank.names), device=values.device)
    return (bank.module == indices.unsqueeze(1)).to(values.dtype) @ values


def averaged(values: Callable[[Bank], Tensor], beta: float) -> Score:
    """The exponential moving average of a value per triplet.

    values(bank) -> [triplets], at least fp32. A ← β A + (1−β) values, from zero, without bias correction; the score is
    A. For values per parameter, use `bank.triplet_sums`, since averaging sums equals summing averages. beta: in [0, 1);
    else raises SettingError.
    """
    beta = smoothing("beta", beta)

    def init(bank: Bank) -> Buffers:
        return {"average": bank.triplet_buffer()}

    def observe(buffers: Buffers, bank: Bank) -> None:
        buffers["average"].lerp_(values(bank), 1 - beta)

    def score(buffers: Buffers, bank: Bank) -> Tensor:
        return buffers["average"].clone()

    return Score(init, observe, score)


def averaged_activation(
    activation: Callable[[LowRank, Tensor], Tensor],
    beta: float,
    score: Callable[[Tensor, Bank], Tensor] = lambda average, bank: average.clone(),
) -> Score:
    """The exponential moving average of `activation` over the forward passes, like `averaged` for gradients.

    activation(adapter, x) -> [r]; score(average, bank) -> [triplets]. Steps whose activations overflowed are skipped.
    beta: in [0, 1); else raises SettingError.
    """
    beta = smoothing("beta", beta)

    def init(bank: Bank) -> Buffers:
        return {"square": bank.triplet_buffer()}

    def observe(buffers: Buffers, bank: Bank) -> None:
        square, current = buffers["square"], bank.activation
        square.copy_(torch.where(current.isfinite(), square.lerp(current, 1 - beta), square))

    return Score(init, observe, lambda buffers, bank: score(buffers["square"], bank), activation)
