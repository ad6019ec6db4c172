"""FIM-LoRA (arXiv 2605.16800): ranks by the empirical Fisher information of the pre-trained weights."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adarank.adapters.layers import known_layer
from adarank.inits.default import default
from adarank.inits.gradients import each_gradient
from adarank.inits.init import Init
from adarank.inits.shares import Weight, in_proportion


def fisher(steps: int = 8, min_rank: int = 1, most: float = 2.0) -> Init:
    """r_i ∝ F_i, the mean square of the gradient ∂L/∂W_i, averaged over `steps` batches; the factors start as
    `default`.

    FIM-LoRA averages the squares of ∂L/∂B = s·(∂L/∂W)Aᵀ over the entries of B, at a random A and B = 0. Over A ~
    U(±1/√d_in) that is s²/3 times F_i in expectation; here the expectation is used, so that the ranks do not depend on
    the draw. min_rank: the fewest triplets per module; most: the most, as a multiple of the requested rank. The total
    is as requested.
    """
    ranks = in_proportion(min_rank, most)

    @torch.no_grad()
    def measure(model: nn.Module, asked: Mapping[str, int], batches: Iterable[Any]) -> dict[str, Weight]:
        sums = dict.fromkeys(asked, torch.zeros(()))

        def add(name: str, gradient: Tensor) -> None:
            wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
            sums[name] = sums[name].to(wide) + wide.square().mean()

        count = each_gradient(model, asked, batches, steps, "fisher", add)
        bases = {name: model.get_submodule(name) for name in asked}
        return {n: Weight(sums[n].item() / count, min(known_layer(base).size(base))) for n, base in bases.items()}

    return Init("fisher", default().fill, measure, ranks)
