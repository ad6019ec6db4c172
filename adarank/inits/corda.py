"""CorDA (arXiv 2406.05223): the weight's singular triplets, weighted by the layer's inputs."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from adarank.adapters.lowrank import LowRank
from adarank.errors import SettingError
from adarank.inits.init import Init, call, evaluating, matrix, take_out, taken, write
from adarank.inits.inputs import Inputs

DAMPING = 0.01  # share of the diagonal's mean to add to the diagonal; doubled until the inverse is accurate
INACCURACY = 0.05  # largest ‖C C⁻¹ − 1‖_F


class Covariance(NamedTuple):
    """total: the sum over batches of XᵀX [d_in, d_in], with each batch's X divided by its largest entry; batches: the
    number of batches."""

    total: Tensor
    batches: int


def corda(steps: int = 256, mode: Literal["ipm", "kpm"] = "ipm") -> Init:
    """W C = U S Vᵀ with the inputs' C = mean XᵀX: the adapter gets r triplets of W = U S (Vᵀ C⁻¹), the base the rest.

    "lora": A = √(S/s) Vᵀ C⁻¹, B = U √(S/s); "svd": A's rows are split into direction (Q) and length (λ). mode: "ipm",
    instruction-previewed, takes the first r triplets, for inputs of the new task; "kpm", knowledge-preserved, takes the
    last r, which matter least to inputs whose knowledge is to be preserved. As in the authors' code, each batch is
    divided by its largest entry, and C gets a damping that doubles until its inverse is accurate. Padding is excluded.
    The model is unchanged.
    """
    if mode not in ("ipm", "kpm"):
        raise SettingError(f"init.mode must be one of ipm, kpm (got {mode!r})")

    @torch.no_grad()
    def measure(model: nn.Module, asked: Mapping[str, int], batches: Iterable[Any]) -> dict[str, Tensor]:
        inputs = Inputs("corda", _add, responses=False)
        with inputs.recording({name: model.get_submodule(name) for name in asked}):
            for batch in taken("corda", batches, steps):
                inputs.begin(batch)
                with evaluating(model):
                    call(model, batch)
        found = {name: inputs.of(name).total / inputs.of(name).batches for name in asked}
        if broken := next((name for name, C in found.items() if not C.isfinite().all()), None):
            raise SettingError(f"init=corda: the inputs of {broken} contain numbers that are not finite")
        return found

    def fill(adapter: LowRank, found: Tensor) -> None:
        W, r = matrix(adapter), adapter.rank
        C, inverse = _damped(found.to(W))
        U, S, Vt = torch.linalg.svd(W @ C, full_matrices=False)
        kept = slice(0, r) if mode == "ipm" else slice(len(S) - r, None)
        root = (S[kept] / adapter.scale).sqrt().unsqueeze(1)
        write(adapter, root * (Vt[kept] @ inverse), root * U.t()[kept])
        take_out(adapter)

    return Init("corda", fill, measure, changes_base=True)


def _add(before: Covariance | None, rows: Tensor) -> Covariance:
    """Add the rows [n, d_in]. As in the authors' code, the largest entry is that of the signed values."""
    largest = rows.max().abs()
    rows = rows / torch.where(largest > 0, largest, torch.ones_like(largest))
    total = rows.t() @ rows
    return Covariance(total, 1) if before is None else Covariance(before.total + total, before.batches + 1)


def _damped(C: Tensor) -> tuple[Tensor, Tensor]:
    """(C + a multiple of the identity, its inverse); the identity for inputs that are all 0."""
    one = torch.eye(len(C), dtype=C.dtype, device=C.device)
    level = C.diagonal().mean()
    if level == 0:
        return one, one
    damping = DAMPING
    while True:
        damped = C + damping * level * one
        inverse = torch.linalg.inv(damped)
        if torch.dist(damped @ inverse, one) < INACCURACY:
            return damped, inverse
        damping *= 2
