"""The bottleneck adapter: a small residual network after a frozen layer (arXiv 1902.00751, 2005.00247).

    before                  after
    parent                  parent
    └── dense: Linear       └── dense: Bottleneck
                                ├── base: Linear   (the same object, frozen)
                                ├── down [m, d], down_bias [m]
                                └── up   [d, m], up_bias   [d]

With f(h) = up·act(down·h + down_bias) + up_bias of width m, the layer becomes

    after a projection, y = base(x):             y + f(y)
    around a LayerNorm of the residual sum z:    LN(z + f(LN(z)))

The first is Houlsby's. The second is Pfeiffer's in a post-norm model, as in AdapterHub's code: f reads the LayerNorm's
output for h + t (h from the FFN, t the residual), and its output is added to h before h + t is normalised again.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adarank.adapters.base import remember_buffers, train_whole, unwrapped
from adarank.adapters.layers import CONV1D, LINEAR, LINEAR_4BIT, Wrapper, check_unadapted, layer_of
from adarank.errors import SettingError, whole_number
from adarank.pieces import needs
from adarank.targets import (
    Targets,
    find_targets,
    inside,
    matches,
    near,
    resolve_places,
    sides,
    trained_modules,
    wanted_names,
)

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}
PARTS = ("down", "down_bias", "up", "up_bias")
STD = 0.02  # of down's initial values, as in AdapterHub's init_weights="bert"


class Bottleneck(Wrapper):
    """A frozen layer followed by a trainable bottleneck of `width` units.

    base: see `features_of`; activation: a name in ACTIVATIONS. All its parameters start at 0 (see `draw`), on the
    base's device, in fp32 or in the base's dtype if that is wider; it computes in the layer's output dtype.
    """

    def __init__(self, base: nn.Module, width: int, activation: str) -> None:
        super().__init__(base)
        features = features_of(base)
        assert features is not None, f"{type(base).__name__} is not a layer that a bottleneck can follow"
        self.features, self.width, self.activation = features, width, activation
        self.down = nn.Parameter(torch.zeros(width, features, **self.like))
        self.down_bias = nn.Parameter(torch.zeros(width, **self.like))
        self.up = nn.Parameter(torch.zeros(features, width, **self.like))
        self.up_bias = nn.Parameter(torch.zeros(features, **self.like))

    @torch.no_grad()
    def draw(self) -> None:
        """Draw down ~ N(0, 0.02²) from torch's global generator; with up at 0, f = 0 and the model is unchanged."""
        self.down.normal_(0.0, STD)

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
    """d, the width of the output of `base`, which is nn.Linear, GPT-2's Conv1D, a 4-bit linear, or nn.LayerNorm over
    the last axis. None for other layers, which a bottleneck cannot follow."""
    if isinstance(base, nn.LayerNorm):
        return base.normalized_shape[0] if len(base.normalized_shape) == 1 and base.elementwise_affine else None
    layer = layer_of(base)
    return None if layer is None or layer not in (LINEAR, CONV1D, LINEAR_4BIT) else layer.size(base)[1]


def bottlenecks_of(model: nn.Module) -> dict[str, Bottleneck]:
    """The bottlenecks in `model`, by module name, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Bottleneck)}


@needs("model", "rank", "targets", "train")
def bottlenecks(
    model: nn.Module,
    places: Targets,
    rank: int = 8,
    targets: Targets = "all-linear",
    activation: Literal["gelu", "relu", "silu"] = "gelu",
    norms: bool = False,
    train: Sequence[str] = (),
) -> dict[str, Bottleneck]:
    """Put a bottleneck after each of `places` and freeze everything else (arXiv 1902.00751, 2005.00247).

    places: the layers to follow. "houlsby" or "pfeiffer": that paper's positions in the model's architecture; otherwise
    name endings or a regular expression, as for `targets` of `adarank.adapt`, that select output projections or the
    LayerNorms of a post-norm model (see `adarank.adapters.bottleneck`). rank, targets: the width is chosen so that the
    number of parameters is closest to that of LoRA with this rank on these targets (see `width_like_lora`). norms:
    whether to train the LayerNorms, too, which then count against the budget (as in Houlsby's paper; AdapterHub leaves
    them frozen). train: endings of the names of modules that stay trainable, such as the head.

    Returns {module name: bottleneck}, in the model's order. Raises SettingError, before anything is changed, if an
    argument cannot be used.
    """
    model = unwrapped(model, changes=True)
    check_unadapted(model)
    if activation not in ACTIVATIONS:
        raise SettingError(f"activation must be one of {', '.join(ACTIVATIONS)} (got {activation!r})")
    rank = whole_number("rank", rank)
    architecture = getattr(getattr(model, "config", None), "model_type", "")
    names = find_places(model, resolve_places(architecture, places), train)
    trained = trained_modules(model, train)
    of_norms = [p for norm in norms_of(model) for p in norm.parameters(recurse=False)] if norms else []
    width = width_like_lora(model, names, rank, targets, sum(p.numel() for p in of_norms), train)
    added = insert(model, dict.fromkeys(names, (width, activation)))
    for bottleneck in added.values():
        bottleneck.draw()
    for parameter in of_norms:
        parameter.requires_grad_(True)
    train_whole(model, trained)
    return added


def width_like_lora(
    model: nn.Module, places: Sequence[str], rank: int, targets: Targets, spent: int = 0, train: Targets = ()
) -> int:
    """The width m, at least 1, at which bottlenecks in all `places` have as many parameters as LoRA.

        m = round((rank·Σ_targets (d_in + d_out) − Σ_places d − spent) / Σ_places (2d + 1))

    A place takes 2d + 1 parameters per unit of width, and d for its upper bias; spent: other parameters that count
    against the budget. The two totals differ by at most half a unit of width, unless m would be less than 1.
    """
    budget = rank * sum(sum(sides(model, name)) for name in find_targets(model, targets, train))
    d = [features_of(model.get_submodule(name)) or 0 for name in places]
    return max(1, round((budget - sum(d) - spent) / sum(2 * n + 1 for n in d)))


def find_places(model: nn.Module, places: Targets, train: Targets = ()) -> list[str]:
    """The names of the modules that `places` selects outside those in `train`. Raises SettingError if an entry matches
    no layer that a bottleneck can follow."""
    wanted, regex = wanted_names("places", places)
    whole = inside(model, train)
    bases = {name: module for name, module in model.named_modules() if name and module not in whole}
    layers = [name for name, module in bases.items() if features_of(module) is not None]
    for place in wanted:
        if not any(matches(name, place, regex) for name in layers):
            outside = " outside the modules in train" * bool(whole)
            raise SettingError(
                f"places={place!r} matches no projection or LayerNorm{outside}; similar names: {near(place, layers)}"
            )
    return [name for name in layers if any(matches(name, place, regex) for place in wanted)]


def norms_of(model: nn.Module) -> list[nn.Module]:
    """Every LayerNorm or RMSNorm, recognised by the ending of its class's name (T5LayerNorm, LlamaRMSNorm)."""
    return [module for module in model.modules() if type(module).__name__.endswith("Norm")]


def insert(model: nn.Module, plan: Mapping[str, tuple[int, str]]) -> dict[str, Bottleneck]:
    """Freeze `model` and add bottlenecks by `plan`, {module name: (width, activation)}, with all parameters at 0."""
    remember_buffers(model)
    model.requires_grad_(False)
    added = {}
    for name, (width, activation) in plan.items():
        base = model.get_submodule(name)
        added[name] = Bottleneck(base, width, activation).train(base.training)
        model.set_submodule(name, added[name])
    return added
