"""Incremental statistics of the layers' inputs; for EVA, a truncated incremental PCA (Ross et al. 2008)."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adarank.adapters.layers import CONV2D, EMBEDDING, layer_of
from adarank.errors import SettingError

S = TypeVar("S")


class PCA(NamedTuple):
    """Statistics of the rows seen so far: their number, mean [d], scatter Σ‖x − mean‖², and the first k principal
    directions V [k, d] (orthonormal rows) with their singular values sigma [k], largest first. Without truncation, V
    and sigma are those of the singular value decomposition of the centred rows."""

    rows: int
    mean: Tensor
    scatter: Tensor
    V: Tensor
    sigma: Tensor

    @property
    def ratio(self) -> Tensor:
        """The share of the variance that each direction explains, σ² / scatter, [k]; 0 if the variance is 0."""
        return torch.where(self.scatter > 0, self.sigma**2 / self.scatter, torch.zeros_like(self.sigma))


def update(before: PCA | None, x: Tensor, k: int) -> PCA:
    """Add rows x [n, d] and keep k directions.

    Takes the SVD of three stacked parts: the previous σVᵀ, the centred new rows, and √(nm/(n + m)) times the difference
    of the means, with m previous rows. It is exact except for truncated directions; the scatter is always exact.
    """
    n, mean = len(x), x.mean(0)
    centred = x - mean
    scatter = centred.square().sum()
    if before is not None:
        m = before.rows
        shift = (n * m / (n + m)) ** 0.5 * (before.mean - mean)
        centred = torch.cat([before.sigma.unsqueeze(1) * before.V, centred, shift.unsqueeze(0)])
        scatter = scatter + before.scatter + shift.square().sum()
        mean = (n * mean + m * before.mean) / (n + m)
        n += m
    _, sigma, Vt = torch.linalg.svd(centred, full_matrices=False)
    return PCA(n, mean, scatter, Vt[:k], sigma[:k])


class Inputs(Generic[S]):
    """Statistics of each layer's inputs; layers with the same input share theirs.

    add(statistics so far or None, rows [n, d_in]) -> statistics. responses: whether to skip the positions that the loss
    of a language model ignores. seen: {layer: statistics}, one object for the layers that have had the same inputs so
    far.
    """

    def __init__(self, init: str, add: Callable[[S | None, Tensor], S], responses: bool) -> None:
        self.init, self.add, self.responses = init, add, responses
        self.seen: dict[str, S] = {}

    @contextmanager
    def recording(self, bases: Mapping[str, nn.Module]) -> Iterator[None]:
        """Inside the `with`, every pass is recorded. Raises SettingError for an embedding, whose inputs are not
        vectors."""
        if embedding := next((name for name, base in bases.items() if layer_of(base) is EMBEDDING), None):
            raise SettingError(
                f"init={self.init} needs inputs that are vectors, but {embedding} is an embedding; remove it from "
                "targets"
            )
        handles = [
            base.register_forward_pre_hook(partial(self.record, name), with_kwargs=True) for name, base in bases.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def of(self, name: str) -> S:
        """The statistics of a layer so far. Raises SettingError if it has received no input."""
        if name not in self.seen:
            raise SettingError(f"init={self.init}: the batches give {name} no input; remove it from targets")
        return self.seen[name]

    def begin(self, batch: Any) -> None:
        """Remember which positions of the batch are padding or, with `responses`, ignored by a language model's
        loss."""
        self.mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
        if self.mask is not None:
            self.mask = self.mask.bool()
            labels = batch.get("labels")
            if self.responses and labels is not None and labels.shape == self.mask.shape:
                self.mask = self.mask & (labels != -100)
        self.last: tuple[Tensor, int] | None = None  # the last input and its version
        self.made: list[tuple[S | None, S | None]] = []  # statistics before and after it

    def record(self, name: str, base: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        x: Tensor = args[0] if args else next(iter(kwargs.values()))
        if self.last is None or self.last[0] is not x or self.last[1] != x._version:
            self.last, self.made = (x, x._version), []
        before = self.seen.get(name)
        own = layer_of(base) is CONV2D  # whose rows depend on its kernel, too
        shared = [after for earlier, after in self.made if earlier is before and not own]  # query, key, value
        if not shared:
            rows = _rows(base, x, self.mask)
            shared = [self.add(before, rows) if len(rows) else before]
            self.made += [] if own else [(before, shared[0])]
        if shared[0] is not None:
            self.seen[name] = shared[0]


def _rows(base: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    """The vectors by which the layer's matrix is multiplied, [rows, d_in], in fp32 or wider."""
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    if layer_of(base) is CONV2D:
        how = "constant" if base.padding_mode == "zeros" else base.padding_mode
        x = F.pad(x, base._reversed_padding_repeated_twice, mode=how)
        x = F.unfold(x, base.kernel_size, base.dilation, 0, base.stride).transpose(1, 2)
    elif mask is not None and x.shape[: mask.ndim] == mask.shape:
        x = x[mask]
    return x.reshape(-1, x.shape[-1])
