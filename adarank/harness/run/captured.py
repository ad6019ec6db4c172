"""`train.capture`: runs training steps with `adarank.capture`, as CUDA graphs on a CUDA device."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adarank import graph_capture
from adarank.controller import RankController
from adarank.errors import SettingError
from adarank.harness.config.spec import Spec
from adarank.harness.data.losses import IGNORED
from adarank.harness.data.task_types import TaskType
from adarank.harness.run.distributed import world

MULTIPLE = 16  # rows are padded to a multiple of this many tokens, so that few shapes need a graph


def why_not_captured(spec: Spec, controller: RankController | None) -> str | None:
    """The setting that prevents capturing a step, and why; None if the step can be captured."""
    train = spec.train
    if world() > 1:
        return "several processes train the model together"
    if train.gradient_accumulation_steps > 1:
        return f"train.gradient_accumulation_steps={train.gradient_accumulation_steps} runs several passes per step"
    if isinstance(train.microbatches, int) and train.microbatches > 1:
        return f"train.microbatches={train.microbatches} runs several passes per step"
    if train.packing:
        return "train.packing=true gives every batch a different shape"
    if spec.compaction == "progressive":
        return "compaction=progressive would remove triplets later and so change the result"
    if train.gradient_checkpointing:
        return "train.gradient_checkpointing=true recomputes activations in the backward pass"
    if train.optimizer != "adamw":
        return f"train.optimizer={train.optimizer} has no capturable form"
    if spec.quantization is not None:
        return f"quantization={spec.quantization.name} computes with bitsandbytes"
    if controller is not None and controller.score is not None and controller.score.activation is not None:
        return "the score records activations"
    if spec.penalty is not None and controller is not None and controller.penalty and controller.penalty.reads_back:
        return f"penalty={spec.penalty.name} reads values back from the device"
    return None


def check_capture(spec: Spec, controller: RankController | None) -> None:
    """Raise SettingError if train.capture=true is impossible."""
    if spec.train.capture is True and (why := why_not_captured(spec, controller)) is not None:
        raise SettingError(f"train.capture must be auto or false here, because {why} (got true)")


def captured_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    controller: RankController | None,
    spec: Spec,
    task_type: TaskType,
    rows: Any,
    device: torch.device,
    graphs: Any = None,
) -> Callable[[Mapping[str, Tensor]], Tensor] | None:
    """A function (batch) -> the detached loss that runs one whole step; None if the training loop runs its own steps.

    With `auto` steps are captured only on CUDA. rows: the encoded training rows, whose `pad` is the padding token.
    graphs: as in `adarank.capture`, for tests; None means CUDA graphs on CUDA and no graphs elsewhere.
    """
    capture = spec.train.capture
    graphs = graphs or ("auto" if device.type == "cuda" else False)
    if not capture or (capture == "auto" and not graphs):
        return None
    if (why := why_not_captured(spec, controller)) is not None:
        print(f"  steps run without CUDA graphs: {why}", flush=True)
        return None
    step = graph_capture.capture(
        model,
        optimizer,
        controller,
        loss=task_type.loss,
        max_grad_norm=spec.train.max_grad_norm,
        autocast=torch.bfloat16 if spec.train.precision == "bf16" else None,
        graphs=graphs,
    )
    if step.make is None or task_type.ONE_PASS is not None:  # padding would change the loss
        return step
    pad = rows.pad["input_ids"] if isinstance(rows.pad, Mapping) else rows.pad
    return lambda batch: step(padded(batch, pad))


def padded(batch: Mapping[str, Tensor], pad: int, multiple: int = MULTIPLE) -> dict[str, Tensor]:
    """`batch` with each of its [rows, tokens] tensors padded on the right to a multiple of `multiple` tokens."""
    values = {"input_ids": pad, "decoder_input_ids": pad, "labels": IGNORED}
    return {
        name: F.pad(t, (0, -t.shape[1] % multiple), value=values.get(name, 0)) if t.ndim == 2 else t
        for name, t in batch.items()
    }
