"""DoRA's magnitude (arXiv 2402.09353), which can be added to any parametrisation of ΔW.

    W' = diag(m / ‖W + ΔW‖) (W + ΔW)          ‖·‖: of every row, which belongs to one output

m [d_out] is trained and starts at ‖W‖, so that W' = W while ΔW = 0. The gradient treats the norm as a constant (§4.3).
ΔW is s·Pᵀ diag(λ) Q, whose triplets are scored and pruned as without a magnitude.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adarank.adapters.layers import CONV2D, LINEAR_4BIT
from adarank.adapters.lowrank import LowRank
from adarank.adapters.parametrisation import Parametrisation
from adarank.errors import SettingError

AFTER_PRUNING = ("keep", "rescale", "reset")  # what `Magnitude.pruning` does to m


class Magnitude(LowRank):
    """A low-rank adapter with a trained magnitude for every output. magnitude: m [d_out]."""

    magnitude: Tensor
    merged_with: Tensor | None = None  # m / ‖W + ΔW‖ [d_out] of the last merge, unknown from W' alone

    def output(self, x: Tensor, dropped: Tensor | None, lam: Tensor) -> Tensor:
        """W' x + b. As in the authors' code, dropout affects everything that differs from W x: W x + (m/‖W + ΔW‖ − 1) W
        d + m/‖W + ΔW‖ ΔW d + b, where d is x after dropout."""
        factor = self._per_output(self.magnitude / self.norm(lam))
        out = super().output(x, dropped, lam)
        both = out if dropped is None else super().output(dropped, None, lam)  # W d + ΔW d + b
        bias = getattr(self.base, "bias", None)  # an embedding has none
        both = both if bias is None else both - self._per_output(bias)
        return (out + (factor - 1) * both).to(out.dtype)

    def _per_output(self, values: Tensor) -> Tensor:
        """One value per output, [d_out], reshaped to broadcast over the layer's output."""
        return values.view(-1, 1, 1) if self.layer is CONV2D else values

    @torch.no_grad()
    def norm(self, lam: Tensor) -> Tensor:
        """‖W + s·Pᵀ diag(lam) Q‖ for every row, [d_out], in the factors' dtype; never 0."""
        with torch.autocast(self.Q.device.type, enabled=False):
            rows = torch.addmm(_weight(self), self.P.t() * (lam * self.scale), self.Q)
        return torch.linalg.vector_norm(rows, dim=1).clamp_min_(torch.finfo(rows.dtype).tiny)

    def delta(self) -> Tensor:
        """W' − W, [d_out, d_in], in the factors' dtype, without the pruned triplets."""
        W, factor = _weight(self), self.magnitude / self.norm(self.effective_lam())
        return (W + super().delta()) * factor.unsqueeze(1) - W

    def merged(self) -> nn.Module:
        self.merged_with = (self.magnitude / self.norm(self.effective_lam())).detach()
        return super().merged()

    def unmerged(self) -> nn.Module:
        if self.layer is LINEAR_4BIT:  # its quantised weight never changed
            return self.base  # type: ignore[no-any-return]
        assert self.merged_with is not None, "unmerging follows merging"
        factor = self.merged_with.to(self.Q).unsqueeze(1)
        merged = _weight(self)
        original = torch.where(factor == 0, 0.0, merged / factor - super().delta())  # m = 0 if W is 0
        self.merged_with = None
        return self.layer.merged(self.base, merged - original, -1)

    @contextmanager
    def pruning(self, after: str) -> Iterator[None]:
        """Prune triplets inside the `with`. after: "keep" keeps m, and with it the length of every row of W'; "rescale"
        keeps m / ‖W + ΔW‖, so that W' loses only the contribution of the pruned triplets; "reset" sets m to ‖W + ΔW‖,
        so that W' = W + ΔW. A frozen magnitude never changes."""
        if after == "keep" or not self.magnitude.requires_grad:
            yield
            return
        before = self.norm(self.training_lam())
        yield
        norm = self.norm(self.training_lam())
        self.magnitude.data.copy_(norm if after == "reset" else self.magnitude * (norm / before))


def _weight(adapter: LowRank) -> Tensor:
    """The base's W [d_out, d_in], in the factors' dtype. Raises SettingError if it is offloaded."""
    if adapter.base.weight.is_meta:
        raise SettingError(
            f"adapter={adapter.kind} needs the norms of its base's weight, which is offloaded; load the model "
            "without offloading, or choose an adapter without a magnitude, such as lora or svd"
        )
    return adapter.layer.matrix(adapter.base).detach().to(adapter.Q)


def with_magnitude(name: str, plain: Parametrisation) -> Parametrisation:
    """The parametrisation `name`: ΔW as in `plain`, with a magnitude. It belongs in the file
    adarank/adapters/NAME.py."""

    def draw(adapter: Any, part: str, tensor: Tensor, generator: Any) -> object:
        """m = ‖W‖; the factors as in `plain`."""
        if part != "magnitude":
            return plain.draw(adapter, part, tensor, generator)
        return tensor.copy_(torch.linalg.vector_norm(_weight(adapter), dim=1))

    return plain._replace(
        name=name, draw=draw, module=Magnitude, extra={**plain.extra, "magnitude": lambda d_in, d_out: (d_out,)}
    )
