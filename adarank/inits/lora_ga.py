"""LoRA-GA (arXiv 2407.05000): factors along the singular directions of the first gradient."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adarank.adapters.layers import known_layer
from adarank.adapters.lowrank import LowRank
from adarank.errors import SettingError, number
from adarank.inits.gradients import weight_gradients
from adarank.inits.init import Init, take_out, write


def lora_ga(steps: int = 64, gamma: float = 16.0, direction: Literal["ArB2r", "A2rBr", "ArBr"] = "ArB2r") -> Init:
    """G = U Σ Vᵀ, the mean gradient of `steps` batches: A = c·(r rows of Vᵀ), B = c·(r other columns of U).

    c = d_out^¼ / √gamma (the stable output of Theorem 3.2), and s·BA is subtracted from the base (Algorithm 1).
    direction, named as in the authors' code: "ArB2r": A takes rows 1…r and B columns r+1…2r (the paper, and that code's
    default); "A2rBr": the reverse; "ArBr": A takes the even ones of 1…2r and B the odd ones. The full SVD replaces that
    code's randomised one, so that each triplet's sign is arbitrary. Needs 2r ≤ the smaller side of every target.
    """
    gamma = number("init.gamma", gamma, "above 0", lambda g: g > 0)
    if direction not in _PLACES:
        raise SettingError(f"init.direction must be one of {', '.join(_PLACES)} (got {direction!r})")

    def measure(model: nn.Module, asked: Mapping[str, int], batches: Iterable[Any]) -> dict[str, Tensor]:
        for name, rank in asked.items():
            base = model.get_submodule(name)
            limit = min(known_layer(base).size(base)) // 2
            if rank > limit:
                raise SettingError(
                    f"rank must be at most {limit} for {name} (got {rank}), because init=lora_ga uses 2·rank "
                    "directions of the gradient"
                )
        return weight_gradients(model, asked, batches, steps, "lora_ga")

    def fill(adapter: LowRank, found: Tensor) -> None:
        U, _, Vt = torch.linalg.svd(found.to(adapter.Q), full_matrices=False)
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
