"""RaLoRA (ICLR 2026): ranks by the intrinsic dimensionality of each module's gradient."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adarank.inits.default import default
from adarank.inits.gradients import weight_gradients
from adarank.inits.init import Init
from adarank.inits.shares import Weight, in_proportion


def ralora(steps: int = 32, min_rank: int = 1, most: float = 4.0) -> Init:
    """r_i ∝ erank(G_i), G the mean gradient of `steps` batches before training; the factors start as `default`.

    erank(G) = exp(H(σ/Σσ)), from 1 to the smaller side of G: the effective rank (Roy and Vetterli 2007), by which
    RaLoRA estimates how many directions a full update would use. The authors' code takes it as the rank itself
    (`ralora_allocate_by_erank`); here the total is as requested. The method's other half, which raises a module's rank
    without further parameters by splitting its factors into diagonal blocks, is a parametrisation and not included.

    min_rank: the fewest triplets per module; most: the most, as a multiple of the requested rank.
    """
    ranks = in_proportion(min_rank, most)

    def measure(model: nn.Module, asked: Mapping[str, int], batches: Iterable[Any]) -> dict[str, Weight]:
        found = weight_gradients(model, asked, batches, steps, "ralora")
        devices = {name: next(model.get_submodule(name).parameters()).device for name in asked}
        return {name: Weight(effective_rank(G.to(devices[name])), min(G.shape)) for name, G in found.items()}

    return Init("ralora", default().fill, measure, ranks)


@torch.no_grad()
def effective_rank(G: Tensor) -> float:
    """exp of the entropy of the normalised singular values, at least 1; 1 for a matrix of zeros."""
    sigma = torch.linalg.svdvals(G)
    shares = sigma / sigma.sum().clamp_min(torch.finfo(sigma.dtype).tiny)
    return torch.special.entr(shares).sum().exp().item()
