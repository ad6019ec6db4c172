"""Measures ranks before training, for a LoRA trained by any other library: see `suggest_ranks`."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from adarank import inits
from adarank.adaptation import checked_ranks, measured
from adarank.adapters.base import unwrapped
from adarank.adapters.layers import check_unadapted
from adarank.errors import SettingError
from adarank.targets import Targets, find_targets, rank_pattern


class SuggestedRanks(dict[str, int]):
    """{module name: rank}, in the model's order, with the arguments of PEFT's LoraConfig.

    PEFT refuses a rank of 0, so modules of rank 0 are in neither `target_modules` nor the patterns. The patterns list
    every other module, so that they apply whatever r and lora_alpha are; their keys are regular expressions.
    alpha_pattern makes the scale α / r = 2 in every module, as in `adarank.adapt`.
    """

    @property
    def target_modules(self) -> list[str]:
        return [name for name, rank in self.items() if rank]

    @property
    def rank_pattern(self) -> dict[str, int]:
        return rank_pattern({name: self[name] for name in self.target_modules})

    @property
    def alpha_pattern(self) -> dict[str, int]:
        return {key: 2 * rank for key, rank in self.rank_pattern.items()}


def suggest_ranks(
    model: nn.Module,
    batches: Iterable[Any],
    budget: int = 8,
    method: Any = "eva",
    targets: Targets = "all-linear",
    steps: int = 8,
) -> SuggestedRanks:
    """The rank that `method` would give each module before training, measured on a few batches; the model is unchanged.

    Args:
        model: a model without adapters.
        batches: as for `adarank.adapt`: model(**batch) or model(*batch), with a .loss if the method needs gradients.
        budget: the mean rank per module, kept exactly; at most the smaller side of every target.
        method: the name of an init in `adarank.inits` that moves ranks between modules, or a configured one. "eva"
            needs no labels; the others need gradients, which the device holds for only one weight at a time.
        targets: as for `adarank.adapt`; by default every linear in the blocks.
        steps: the maximum number of batches to read; a configured init has its own.

    Returns:
        A dict {module name: rank} with rank_pattern, alpha_pattern and target_modules for PEFT's LoraConfig.

    Raises:
        SettingError: an argument cannot be used.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
        >>> inputs = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
        >>> ranks = suggest_ranks(model, [(inputs,), (inputs,)], budget=2)
        >>> sum(ranks.values()), list(ranks)
        (4, ['0', '2'])
        >>> sum(ranks.rank_pattern.values())
        4
    """
    model = unwrapped(model)
    check_unadapted(model)
    if isinstance(method, str):
        if method not in (known := methods()):
            raise SettingError(f"method must be one of {', '.join(known)} (got {method!r})")
        method = getattr(inits, method)(steps=steps)
    elif getattr(method, "ranks", None) is None:
        raise SettingError(f"method must be an init that moves ranks between modules (got {method!r})")
    names = find_targets(model, targets)
    asked = checked_ranks(model, names, budget, "budget")
    return SuggestedRanks(measured(method, model, asked, batches)[1])


def methods() -> list[str]:
    """The names of the inits that move ranks between modules."""
    return [name for name in inits.__all__ if getattr(inits, name)().ranks is not None]
