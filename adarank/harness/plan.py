"""The numbers of one run's loop."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Plan:
    """Numbers of the loop. lr: peak; optimizer: see `make_optimizer`; lr_ratio: that of every P ÷ lr (LoRA+); steps,
    warmup, eval_every, log_every: optimiser steps; batch_size: rows of one forward pass; accumulation: forward passes of
    one step; group_by_length: see `data.grouped_by_length`; clip: largest gradient norm, 0 for none; precision: "fp32" or "bf16" (autocast); metrics: names, the first
    chooses the best checkpoint, higher_is_better: which way."""

    lr: float
    lr_ratio: float
    steps: int
    batch_size: int
    accumulation: int
    warmup: int
    decay: str
    weight_decay: float
    clip: float
    eval_every: int
    log_every: int
    precision: str
    seed: int
    metrics: tuple[str, ...]
    optimizer: str = "adamw"
    checkpoint_activations: bool = False
    shard: str = "none"
    group_by_length: bool = False
    higher_is_better: bool = True


def autocast(precision: str, device: torch.device) -> Any:
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def at_least_fp32(x: Tensor) -> Tensor:
    """What autocast left in half precision, in fp32; fp32 and fp64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
