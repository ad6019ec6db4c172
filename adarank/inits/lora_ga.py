"""LoRA-GA (arXiv 2407.05000): the singular directions of the first gradient."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adarank.adapters.layers import layer_of
from adarank.adapters.lowrank import LowRank
from adarank.errors import SettingError
from adarank.inits.gradients import weight_gradients
from adarank.inits.init import Init, take_out, write


def lora_ga(steps: int = 64, gamma: float = 16.0, direction: Literal["ArB2r", "A2rBr", "ArBr"] = "ArB2r") -> Init:
    """G = U Σ Vᵀ, the mean gradient of `steps` batches: A = c·(r rows of Vᵀ), B = c·(r other columns of U).

    c = d_out^¼ / √gamma (the stable output of Theorem 3.2), and s·BA leaves the base (Algorithm 1). direction, named as
    in the authors' code: "ArB2r", A takes rows 1…r and B columns r+1…2r (the paper and that code's default); "A2rBr",
    the other way round; "ArBr", A takes the even ones of 1…2r and B the odd ones. The full SVD stands in for
    the code's randomised one; a singular vector's sign is arbitrary, and so is each triplet's. Needs 2r ≤ the smaller
    side of every target.
    """
    if not gamma > 0:
        raise SettingError(f"init.gamma={gamma} is no scale; valid: above 0")
    if direction not in _PLACES:
        raise SettingError(f"init.direction={direction!r} is not known; valid: {', '.join(_PLACES)}")

    def measure(model: nn.Module, asked: Mapping[str, int], batches: Iterable[Any]) -> dict[str, Tensor]:
        for name, rank in asked.items():
            base = model.get_submodule(name)
            layer = layer_of(base)
            assert layer is not None
            limit = min(layer.size(base)) // 2
            if rank > limit:
                raise SettingError(
                    f"init=lora_ga takes 2·rank directions of the gradient: rank={rank} is too much for {name}; "
                    f"valid: at most {limit}"
                )
        return weight_gradients(model, asked, batches, steps, "lora_ga")

    @torch.no_grad()
    def fill(adapters: Mapping[str, LowRank], found: Mapping[str, Tensor]) -> None:
        for name, adapter in adapters.items():
            U, _, Vt = torch.linalg.svd(found[name].to(adapter.Q), full_matrices=False)
            rows, columns = _PLACES[direction](adapter.rank)
            c = adapter.out_features**0.25 / gamma**0.5
            write(adapter, c * Vt[rows], c * U.t()[columns])
            take_out(adapter)

    return Init("lora_ga", fill, measure, changes_base=True)


_PLACES = {  # r -> (rows of Vᵀ in A, columns of U in B)
    "ArB2r": lambda r: (slice(0, r), slice(r, 2 * r)),
    "A2rBr": lambda r: (slice(r, 2 * r), slice(0, r)),
    "ArBr": lambda r: (slice(1, 2 * r, 2), slice(0, 2 * r, 2)),
}
