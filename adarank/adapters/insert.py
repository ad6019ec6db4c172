"""Bottleneck adapters into a model: where, and how wide."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import nn

from adarank.adapters.bottleneck import Bottleneck, bottlenecks_of, features_of
from adarank.adapters.inject import Targets, find_targets, matches, near, sides, trained_modules
from adarank.adapters.lowrank import adapters_of
from adarank.errors import SettingError


def bottlenecks(
    model: nn.Module,
    places: Targets,
    rank: int = 8,
    targets: Targets = "all-linear",
    activation: Literal["gelu", "relu", "silu"] = "gelu",
    norms: bool = False,
    train: Sequence[str] = (),
) -> dict[str, Bottleneck]:
    """Put a bottleneck behind each of `places` and freeze everything else (arXiv 1902.00751, 2005.00247).

    places: the layers to follow, by suffixes or one regular expression, as `targets` of `adarank.adapt`: output
    projections (see `bottleneck`), or the LayerNorms of a post-norm model. rank, targets: the width is the one whose
    parameters come closest to those of LoRA with that rank on those targets (see `width_like_lora`). norms: the
    LayerNorms train, too, which the budget then pays for (Houlsby's paper; AdapterHub leaves them frozen).
    train: suffixes of modules that stay trainable (the head, say).

    Returns {module name: bottleneck}, in the model's order. Raises SettingError, before anything is changed.
    """
    if adapters_of(model) or bottlenecks_of(model):
        raise SettingError("the model already has adapters; start from a freshly loaded base")
    if activation not in ("gelu", "relu", "silu"):
        raise SettingError(f"activation={activation!r} is not known; valid: gelu, relu, silu")
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise SettingError(f"rank={rank} is no rank; valid: a whole number of at least 1")
    names = find_places(model, places)
    trained = trained_modules(model, train)
    spent = [p for norm in norms_of(model) for p in norm.parameters(recurse=False)] if norms else []
    width = width_like_lora(model, names, rank, targets, sum(p.numel() for p in spent))
    made = insert(model, dict.fromkeys(names, (width, activation)))
    for added in made.values():
        added.draw()
    for parameter in spent:
        parameter.requires_grad_(True)
    for name in trained:
        model.get_submodule(name).requires_grad_(True)
    return made


def width_like_lora(model: nn.Module, places: Sequence[str], rank: int, targets: Targets, spent: int = 0) -> int:
    """The width m at which bottlenecks in all `places` have as many parameters as LoRA, at least 1.

        m = round((rank·Σ_targets (d_in + d_out) − Σ_places d − spent) / Σ_places (2d + 1))

    A place takes 2d + 1 parameters for each unit of width, and d for its upper bias; spent: what else the budget pays
    for. So the two differ by at most half a unit of width, unless m would be less than 1.
    """
    budget = rank * sum(sum(sides(model, name)) for name in find_targets(model, targets))
    d = [features_of(model.get_submodule(name)) or 0 for name in places]
    return max(1, round((budget - sum(d) - spent) / sum(2 * n + 1 for n in d)))


def find_places(model: nn.Module, places: Targets) -> list[str]:
    """Module names that `places` selects (as `find_targets` does). SettingError where one matches no layer that a
    bottleneck can follow."""
    regex = isinstance(places, str)
    wanted = [places] if isinstance(places, str) else list(places)
    known = [name for name, module in model.named_modules() if name and features_of(module) is not None]
    for place in wanted:
        try:
            found = [name for name in known if matches(name, place, regex)]
        except re.error as error:
            raise SettingError(f"places={place!r} is neither a name nor a regular expression: {error}") from None
        if not found:
            raise SettingError(f"places={place!r} matches no projection or LayerNorm; near names: {near(place, known)}")
    if not wanted:
        raise SettingError("places=[] selects nothing; name at least one module")
    return [name for name in known if any(matches(name, place, regex) for place in wanted)]


def norms_of(model: nn.Module) -> list[nn.Module]:
    """Every LayerNorm or RMSNorm, known by the ending of its class's name (T5LayerNorm, LlamaRMSNorm)."""
    return [module for module in model.modules() if type(module).__name__.endswith("Norm")]


def insert(model: nn.Module, plan: Mapping[str, tuple[int, str]]) -> dict[str, Bottleneck]:
    """Freeze `model` and put bottlenecks in by `plan`, {module name: (width, activation)}, every parameter at 0."""
    model.requires_grad_(False)
    made = {}
    for name, (width, activation) in plan.items():
        parent, _, child = name.rpartition(".")
        base: Any = model.get_submodule(name)
        made[name] = Bottleneck(base, width, activation).train(base.training)
        setattr(model.get_submodule(parent), child, made[name])
    return made
