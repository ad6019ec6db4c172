"""The gradient of the loss with respect to the target weights, before training: what GoRA and LoRA-GA start from."""

from collections.abc import Iterable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from adarank.adapters.layers import layer_of
from adarank.errors import SettingError
from adarank.inits.init import call, evaluating, taken


def weight_gradients(
    model: nn.Module, names: Iterable[str], batches: Iterable[Any], steps: int, init: str
) -> dict[str, Tensor]:
    """{module name: G [d_out, d_in]}, the mean gradient of at most `steps` batches, on the CPU, in fp32 or wider.

    In evaluation mode, so that dropout adds no noise. Only the target weights get a gradient, and each is taken away
    as soon as it is there: one weight's gradient at a time lies on the device. The model is left as it was. Raises
    SettingError where a weight is quantised, or a batch yields no loss.
    """
    weights: dict[str, Any] = {name: model.get_submodule(name).weight for name in names}
    for name, weight in weights.items():
        if not weight.dtype.is_floating_point:
            raise SettingError(
                f"init={init} needs the gradient of {name}'s weight, which is quantised; "
                "valid: a base in floating point, or another init"
            )
    sums = {n: torch.zeros(w.shape, dtype=torch.promote_types(w.dtype, torch.float32)) for n, w in weights.items()}

    def take(name: str, weight: Tensor) -> None:
        assert weight.grad is not None
        sums[name] += weight.grad.cpu()
        weight.grad = None

    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    model.requires_grad_(False)
    handles = []
    count = 0
    try:
        for name, weight in weights.items():
            weight.grad = None
            weight.requires_grad_(True)
            handles.append(weight.register_post_accumulate_grad_hook(partial(take, name)))
        with evaluating(model), torch.enable_grad():
            for batch in taken(init, batches, steps):
                count += 1
                _loss(call(model, batch), init).backward()
    finally:
        for handle in handles:
            handle.remove()
        for parameter, required, gradient in parameters:
            parameter.requires_grad_(required)
            parameter.grad = gradient
    return {name: _matrix(model.get_submodule(name), total / count) for name, total in sums.items()}


def _loss(output: Any, init: str) -> Tensor:
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if not isinstance(loss, Tensor):
        raise SettingError(
            f"init={init} needs gradients: the model's output for a batch has no loss; put labels into the batches"
        )
    return loss


def _matrix(base: nn.Module, weight: Tensor) -> Tensor:
    """A tensor of the shape of the layer's weight as a matrix [d_out, d_in]."""
    layer = layer_of(base)
    assert layer is not None
    return layer.matrix(SimpleNamespace(weight=weight))
