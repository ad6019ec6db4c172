"""Baselines that add nothing to the model and train a part of it: the biases, or the head alone."""

from collections.abc import Sequence

from torch import nn

from adarank.adapters.bottleneck import bottlenecks_of
from adarank.adapters.inject import trained_modules
from adarank.adapters.lowrank import adapters_of
from adarank.errors import SettingError


def bitfit(model: nn.Module, train: Sequence[str] = ()) -> dict[str, nn.Parameter]:
    """BitFit (arXiv 2106.10199): every bias trains, those of the LayerNorms too, and all else is frozen.

    train: suffixes of modules that train whole (the head). Returns {parameter name: bias}. It has no rank: its size is
    the model's. Raises SettingError, before anything is changed, where the model has no bias (Llama) or has adapters.
    """
    biases = {n: p for n, p in model.named_parameters() if n.rpartition(".")[2].endswith("bias")}
    if not biases:
        raise SettingError(f"{type(model).__name__} has no bias, so BitFit would train nothing; choose another method")
    _only(model, train)
    for bias in biases.values():
        bias.requires_grad_(True)
    return biases


def head(model: nn.Module, train: Sequence[str]) -> dict[str, nn.Parameter]:
    """Train only the modules named in `train` (suffixes), the head say, and freeze all else.

    Returns {parameter name: parameter} of what trains. Raises SettingError, before anything is changed.
    """
    if not train:
        raise SettingError("train=[] leaves nothing to train; name at least one module, the head say")
    _only(model, train)
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _only(model: nn.Module, train: Sequence[str]) -> None:
    if adapters_of(model) or bottlenecks_of(model):
        raise SettingError("the model already has adapters; start from a freshly loaded base")
    trained = trained_modules(model, train)
    model.requires_grad_(False)
    for name in trained:
        model.get_submodule(name).requires_grad_(True)
