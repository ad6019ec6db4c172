"""What EVA hears of the layers' inputs while batches pass through the model."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adarank.adapters.layers import CONV2D, layer_of
from adarank.inits.pca import PCA, update


class Inputs:
    """An incremental PCA of each layer's inputs, keeping k directions; layers with the same input share one.

    owner: {layer: the layer whose PCA is its own}; seen: {owner: PCA}. `hear` is a forward pre-hook (with kwargs) of
    each layer; `begin` goes before each batch.
    """

    def __init__(self, k: int) -> None:
        self.k = k
        self.owner: dict[str, str] = {}
        self.seen: dict[str, PCA] = {}

    def begin(self, batch: Any) -> None:
        """Note which positions of the batch are neither padding nor, in a language model, left out of the loss."""
        self.mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
        if self.mask is not None:
            self.mask = self.mask.bool()
            labels = batch.get("labels")
            if labels is not None and labels.shape == self.mask.shape:
                self.mask = self.mask & (labels != -100)
        self.last: tuple[Tensor, int, str] | None = None

    def hear(self, name: str, base: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        x: Tensor = args[0] if args else next(iter(kwargs.values()))
        same = self.last is not None and self.last[0] is x and self.last[1] == x._version  # query, key, value
        owner = self.owner.setdefault(name, self.last[2] if same and self.last is not None else name)
        if not same:
            self.last = (x, x._version, owner)
        if owner == name:
            rows = _rows(base, x, self.mask)
            if len(rows):
                self.seen[name] = update(self.seen.get(name), rows, self.k)


def _rows(base: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    """The vectors that the layer's matrix is multiplied by, [rows, d_in], in fp32 or wider."""
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    if layer_of(base) is CONV2D:
        how = "constant" if base.padding_mode == "zeros" else base.padding_mode
        x = F.pad(x, base._reversed_padding_repeated_twice, mode=how)
        x = F.unfold(x, base.kernel_size, base.dilation, 0, base.stride).transpose(1, 2)
    elif mask is not None and x.shape[: mask.ndim] == mask.shape:
        x = x[mask]
    return x.reshape(-1, x.shape[-1])
