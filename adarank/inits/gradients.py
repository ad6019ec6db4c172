"""The gradient of the loss with respect to the target weights before training, for inits such as GoRA and LoRA-GA."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from adarank.adapters.layers import known_layer
from adarank.errors import SettingError
from adarank.inits.init import call, evaluating, taken


def weight_gradients(
    model: nn.Module, names: Iterable[str], batches: Iterable[Any], steps: int, init: str
) -> dict[str, Tensor]:
    """{module name: G [d_out, d_in]}, the mean gradient over at most `steps` batches, on the CPU, in fp32 or wider.

    See `each_gradient`. Raises SettingError if a weight is quantised, or the output for a batch has no loss.
    """
    weights: dict[str, Any] = {name: model.get_submodule(name).weight for name in names}
    sums = {n: torch.zeros(w.shape, dtype=torch.promote_types(w.dtype, torch.float32)) for n, w in weights.items()}

    def add(name: str, gradient: Tensor) -> None:
        sums[name] += gradient.cpu()

    count = each_gradient(model, weights, batches, steps, init, add)
    layers = {name: known_layer(model.get_submodule(name)) for name in sums}
    return {name: layers[name].matrix(SimpleNamespace(weight=total / count)) for name, total in sums.items()}


def each_gradient(
    model: nn.Module,
    names: Iterable[str],
    batches: Iterable[Any],
    steps: int,
    init: str,
    take: Callable[[str, Tensor], None],
) -> int:
    """Call take(module name, gradient of its weight) for at most `steps` batches; returns the number of batches.

    The model runs in evaluation mode, so that dropout adds no noise. Only the target weights get a gradient, and each
    is released at once, so that the device holds the gradient of one weight at a time. The model is not changed. Raises
    SettingError if a weight is quantised, or the output for a batch has no loss.
    """
    weights: dict[str, Any] = {name: model.get_submodule(name).weight for name in names}
    for name, weight in weights.items():
        if not weight.dtype.is_floating_point:
            raise SettingError(
                f"init={init} needs the gradient of {name}'s weight, which is quantised; use a base in floating point, "
                "or another init"
            )

    def release(name: str, weight: Tensor) -> None:
        assert weight.grad is not None
        take(name, weight.grad)
        weight.grad = None

    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    model.requires_grad_(False)
    handles = []
    count = 0
    try:
        for name, weight in weights.items():
            weight.grad = None
            weight.requires_grad_(True)
            handles.append(weight.register_post_accumulate_grad_hook(partial(release, name)))
        with evaluating(model), torch.enable_grad():
            for batch in taken(init, batches, steps):
                count += 1
                output = call(model, batch)
                loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
                if not isinstance(loss, Tensor):
                    raise SettingError(
                        f"init={init} needs gradients: the model's output for a batch has no loss; put labels into the "
                        "batches"
                    )
                loss.backward()
    finally:
        for handle in handles:
            handle.remove()
        for parameter, required, gradient in parameters:
            parameter.requires_grad_(required)
            parameter.grad = gradient
    return count
