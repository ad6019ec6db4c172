"""The whole optimiser step of a contender, including clipping, in each of its forms: eager, fed and captured."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import adarank
from adarank.optimizers import CONTROLLER
from experiments.bench.workload import Contender

MAX_GRAD_NORM = 1.0


def training_step(
    work: Contender, form: str, autocast: torch.dtype | None, graphs: Any = True
) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """step(batch) -> the detached loss, for the model and the optimiser of `work`.

    form: "eager", a user's own loop; "captured", `adarank.capture` with `graphs`; "fed", the same code without graphs.
    The learning rates are tensors in each, so that AdamW rounds in the same way. autocast: the dtype of the forward
    pass, or None.
    """
    model, optimizer = work.model, work.optimizer
    controller = getattr(optimizer, CONTROLLER, None)
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"], device=group["params"][0].device)
    if form != "eager":
        graphs = graphs if form == "captured" else False
        return adarank.capture(
            model, optimizer, controller, max_grad_norm=MAX_GRAD_NORM, autocast=autocast, graphs=graphs
        )
    trained = [p for group in optimizer.param_groups for p in group["params"]]

    def step(batch: Mapping[str, Tensor]) -> Tensor:
        with torch.autocast(trained[0].device.type, autocast, enabled=autocast is not None):
            loss = model(**batch).loss
        loss.backward()
        if controller is not None:
            controller.after_backward()
        nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step
