"""Baselines that add nothing to the model and train a part of it: the biases, or only the head."""

from collections.abc import Sequence

from torch import nn

from adarank.adapters.base import remember_buffers, train_whole, unwrapped
from adarank.adapters.layers import check_unadapted
from adarank.errors import SettingError
from adarank.pieces import needs
from adarank.targets import trained_modules


@needs("model", "train")
def bitfit(model: nn.Module, train: Sequence[str] = ()) -> dict[str, nn.Parameter]:
    """BitFit (arXiv 2106.10199): train every bias, including those of LayerNorms, and freeze all other parameters.

    train: endings of the names of modules that are trained as a whole (the head). Returns {parameter name: bias}. The
    model determines the number of biases; there is no rank. Raises SettingError if it has no biases (Llama) or has
    adapters.
    """
    model = unwrapped(model)
    biases = {n: p for n, p in model.named_parameters() if n.rpartition(".")[2].endswith("bias")}
    if not biases:
        raise SettingError(f"{type(model).__name__} has no bias, so BitFit would train nothing; choose another method")
    trained = _freeze_all(model, train)
    for bias in biases.values():
        bias.requires_grad_(True)
    train_whole(model, trained)
    return biases


@needs("model", "train")
def head(model: nn.Module, train: Sequence[str]) -> dict[str, nn.Parameter]:
    """Train only the modules named in `train` (endings of names), such as the head, and freeze all other parameters.

    Returns {parameter name: parameter} of all trained parameters. Raises SettingError, before anything is changed,
    if `train` is empty (the model has no head for its task) or matches no module, or if the model has adapters.
    """
    if not train:
        raise SettingError(
            f"there is no head to train: {type(model).__name__} has none of its own for this task (train=[]); name at "
            "least one module, or choose another method"
        )
    model = unwrapped(model)
    train_whole(model, _freeze_all(model, train))
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _freeze_all(model: nn.Module, train: Sequence[str]) -> list[str]:
    """Freeze all parameters; returns the names of the modules that `train` selects, which are still frozen, too."""
    check_unadapted(model)
    trained = trained_modules(model, train)
    remember_buffers(model)
    model.requires_grad_(False)
    return trained
