"""The bottleneck adapter: a small residual network behind a frozen layer (arXiv 1902.00751, 2005.00247).

    before                  after
    parent                  parent
    └── dense: Linear       └── dense: Bottleneck
                                ├── base: Linear   (the same object, frozen)
                                ├── down [m, d], down_bias [m]
                                └── up   [d, m], up_bias   [d]

With f(h) = up·act(down·h + down_bias) + up_bias of width m, the layer becomes

    behind a projection, y = base(x):            y + f(y)
    around a LayerNorm of the residual sum z:    LN(z + f(LN(z)))

The first is Houlsby's. The second is Pfeiffer's in a post-norm model as AdapterHub's code computes it: f reads what the
LayerNorm made of h + t (h from the FFN, t the residual) and is added to h before h + t is normalised again.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adarank.adapters.layers import CONV1D, LINEAR, LINEAR_4BIT, layer_of

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}
PARTS = ("down", "down_bias", "up", "up_bias")
STD = 0.02  # of down, as AdapterHub's init_weights="bert" draws it


class Bottleneck(nn.Module):
    """A frozen layer with a trainable bottleneck of `width` units behind it.

    base: see `features_of`; activation: a name in ACTIVATIONS. All its parameters are created at 0 (see `draw`), on the
    base's device, in fp32 or, where the base is wider, in the base's dtype; it computes in the layer's output dtype.
    """

    base: Any

    def __init__(self, base: nn.Module, width: int, activation: str) -> None:
        super().__init__()
        features = features_of(base)
        assert features is not None, f"{type(base).__name__} is no layer that a bottleneck can follow"
        self.base = base.requires_grad_(False)
        self.features, self.width, self.activation = features, width, activation
        self.enabled = True
        weight = self.base.weight
        known = weight.dtype if weight.dtype.is_floating_point else torch.float32  # a quantised one is stored as bytes
        like = {"device": weight.device, "dtype": torch.promote_types(known, torch.float32)}
        self.down = nn.Parameter(torch.zeros(width, features, **like))
        self.down_bias = nn.Parameter(torch.zeros(width, **like))
        self.up = nn.Parameter(torch.zeros(features, width, **like))
        self.up_bias = nn.Parameter(torch.zeros(features, **like))

    # A wrapped layer is still asked for these by some models (T5 reads wo.weight.dtype, say).
    @property
    def weight(self) -> Any:
        return self.base.weight

    @property
    def bias(self) -> Any:
        return self.base.bias

    @torch.no_grad()
    def draw(self) -> None:
        """down ~ N(0, 0.02²) from torch's global generator; with up at 0, f = 0 and the model's function is kept."""
        self.down.normal_(0.0, STD)

    def own(self) -> list[nn.Parameter]:
        """The bottleneck's parameters: 2·m·d + m + d numbers."""
        return [getattr(self, part) for part in PARTS]

    def change(self, h: Tensor) -> Tensor:
        """f(h), [..., d] -> [..., d]."""
        hidden = ACTIVATIONS[self.activation](F.linear(h, self.down.to(h.dtype), self.down_bias.to(h.dtype)))
        return F.linear(hidden, self.up.to(h.dtype), self.up_bias.to(h.dtype))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        if not self.enabled:
            return y
        if isinstance(self.base, nn.LayerNorm):
            return self.base(x + self.change(y))  # type: ignore[no-any-return]
        return y + self.change(y)

    def extra_repr(self) -> str:
        return f"width={self.width}, activation={self.activation}"


def features_of(base: nn.Module) -> int | None:
    """d, the width of what `base` puts out: nn.Linear, GPT-2's Conv1D, a 4-bit linear, or nn.LayerNorm over the last
    axis. None for other layers, which a bottleneck cannot follow."""
    if isinstance(base, nn.LayerNorm):
        return base.normalized_shape[0] if len(base.normalized_shape) == 1 and base.elementwise_affine else None
    layer = layer_of(base)
    return None if layer is None or layer not in (LINEAR, CONV1D, LINEAR_4BIT) else layer.size(base)[1]


def bottlenecks_of(model: nn.Module) -> dict[str, Bottleneck]:
    """The bottlenecks in `model`, by module name, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Bottleneck)}
