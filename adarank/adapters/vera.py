"""VeRA (arXiv 2310.11454, eq. 2): W + diag(b) B diag(d) A with frozen random A and B shared by all modules.

A = Q [r, d_in] and B = Pᵀ [d_out, r] are the first d_in columns and d_out rows of one pair for all modules, which is as
large as the largest module requires. d = λ [r], initially 0.1, and b [d_out], initially 0, are trained. A and B are
drawn as in PEFT 0.21, from Kaiming's uniform distribution with a fixed seed, so that they do not depend on the run's
seed.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adarank.adapters import lora
from adarank.adapters.lowrank import LowRank
from adarank.adapters.parametrisation import Parametrisation

D_INITIAL = 0.1
PROJECTION_KEY = 0  # the seed of A and B


class Vera(LowRank):
    """A frozen layer with frozen factors and two trained vectors, λ (the paper's d) and b."""

    b: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for part in ("Q", "P"):
            factor = self._parameters.pop(part)
            assert factor is not None
            self.register_buffer(part, factor.detach())

    @property
    def triplet_cost(self) -> int:
        return 1

    def output(self, x: Tensor, dropped: Tensor | None, lam: Tensor) -> Tensor:
        out: Tensor = self.base(x)
        if not self.rank:
            return out
        return out + self.layer.delta(
            self.base, x if dropped is None else dropped, self.Q, lam * self.scale, self.P * self.b
        )

    def delta(self) -> Tensor:
        return super().delta() * self.b.unsqueeze(1)


def _shared(adapters: Mapping[str, LowRank]) -> None:
    """Fill A and B of every adapter, {module name: adapter}, from one pair with the largest sides."""
    every = list(adapters.values())
    rank = max(a.rank for a in every)
    generator = torch.Generator().manual_seed(PROJECTION_KEY)
    sides = (rank, max(a.in_features for a in every)), (max(a.out_features for a in every), rank)
    bounds = [math.sqrt(3) * (math.sqrt(2) / math.sqrt(fan_in)) for _, fan_in in sides]
    A, B = (torch.empty(n).uniform_(-at, at, generator=generator) for n, at in zip(sides, bounds, strict=True))
    for a in every:
        a.Q.copy_(A[: a.rank, : a.in_features])
        a.P.copy_(B[: a.out_features, : a.rank].t())


def _draw(adapter: Any, part: str, factor: Tensor, generator: Any) -> None:
    """λ = 0.1, b = 0; A and B are the same everywhere."""
    if part in ("lam", "b"):
        factor.fill_(D_INITIAL if part == "lam" else 0.0)


def _b(d_in: int, d_out: int) -> tuple[int]:
    return (d_out,)


def _fold(P: Tensor, extra: Mapping[str, Tensor]) -> Tensor:
    return P * extra["b"]


PARAMETRISATION = Parametrisation(
    "vera",
    learns_lambda=True,
    split=lora.PARAMETRISATION.split,
    draw=_draw,
    module=Vera,
    extra={"b": _b},
    shared=_shared,
    fold=_fold,
    scale=1.0,
)
