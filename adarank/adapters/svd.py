"""AdaLoRA's triplets (arXiv 2303.10512, eq. 3): W + s·Pᵀ diag(λ) Q, all three trained."""

from typing import Any

from torch import Tensor

from adarank.adapters.parametrisation import Parametrisation

STD = 0.02  # of the initial entries of P and Q, as in AdaLoRA's code


def _split(V: Tensor, sigma: Tensor, U: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return V, sigma, U


def _draw(adapter: Any, part: str, factor: Tensor, generator: Any) -> None:
    """P, Q ~ N(0, 0.02²), λ = 0."""
    if part == "lam":
        factor.zero_()
    else:
        factor.normal_(0.0, STD, generator=generator)


PARAMETRISATION = Parametrisation("svd", learns_lambda=True, split=_split, draw=_draw)
