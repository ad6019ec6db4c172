"""`train.microbatches`: decides which rows share a forward pass, so that there is less padding and the gradient stays
the same.

The rows of a step are those of `train.batch_size`. Each process groups its share of them into passes of rows of similar
length, and weights each pass in the loss by its number of rows or tokens. The number of passes depends only on lengths
and constants and never on measured times, so that a run can be repeated.
"""

import math
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import nn

from adarank.adapters.layers import numel, wrappers_of
from adarank.errors import SettingError
from adarank.harness.config.spec import Spec
from adarank.harness.data.batches import microbatches
from adarank.harness.data.task_types import TaskType
from adarank.harness.run.distributed import rank, world
from adarank.scores.score import as_score
from adarank.targets import block_linears

# The fixed cost of a pass, in tokens, for models whose blocks' linears have w weights on average. On the CPU it is this
# number / √w, fitted to random BERTs of width 64 to 768 (fp32) and to MiniLM on SST-2 and CoLA (bf16).
CPU_OVERHEAD = {"fp32": 25_000.0, "bf16": 40_000.0}
# On a GPU it is this number / w, which is computed rather than measured: while the host launches the kernels of one
# adapted linear, forward and backward (0.7 ms in step_h100.json), an H100 performs 6 w operations per token at 400
# (fp32: 50) TFLOP/s.
GPU_OVERHEAD = {"fp32": 6e9, "bf16": 5e10}


def why_one_pass(spec: Spec, task_type: TaskType) -> str | None:
    """Why this run never splits the rows of a forward pass; None if it may."""
    if spec.train.packing:
        return "train.packing=true, which leaves no padding to save"
    if task_type.ONE_PASS is not None:
        return task_type.ONE_PASS
    if spec.score is not None and as_score(spec.score(seed=spec.seed)).activation is not None:
        return f"score={spec.score.name}, which averages layer inputs over whole passes, including padding"
    return None


def check_microbatches(spec: Spec, task_type: TaskType) -> None:
    """Raise SettingError for a number of passes above 1 if the rows are never split."""
    if spec.train.microbatches not in ("auto", 1) and (why := why_one_pass(spec, task_type)):
        raise SettingError(f"train.microbatches must be auto or 1 with {why} (got {spec.train.microbatches})")


def pass_overhead(model: nn.Module, device: torch.device, precision: str) -> float:
    """The fixed cost of a forward and backward pass, in tokens. precision: "fp32" or "bf16"."""
    wrapped = wrappers_of(model)
    linears: list[Any] = [
        wrapped[name].base if name in wrapped else model.get_submodule(name) for name in block_linears(model)
    ]
    if not linears:
        return math.inf
    weights = fmean(numel(linear.weight) for linear in linears)
    if device.type == "cpu":
        return CPU_OVERHEAD[precision] / math.sqrt(weights)
    return GPU_OVERHEAD[precision] / weights


def local_passes(part: np.ndarray, lengths: np.ndarray, passes: int | str, overhead: float) -> list[np.ndarray]:
    """This process's rows of `part`, as one array per forward pass.

    part: the indices of the rows that all processes share, [rows], a multiple of the number of processes; lengths: the
    tokens of every row; passes, overhead: see `microbatches`. Every process runs the same number of passes, because
    each pass gathers sharded weights.
    """
    shares = np.split(part, world())
    if passes == "auto" and len(shares) > 1:
        passes = max(len(microbatches(lengths[share], "auto", overhead)) for share in shares)
    own = shares[rank()]
    return [own[places] for places in microbatches(lengths[own], passes, overhead)]
