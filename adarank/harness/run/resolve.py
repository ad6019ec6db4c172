"""Resolves a composed configuration to everything that determines a run: settings, data, base model, targets, ranks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import nn

from adarank.adapters.base import name_classes
from adarank.errors import SettingError
from adarank.harness.config.spec import Spec
from adarank.harness.config.validate import settle, typed_keys
from adarank.harness.data.task_types import TASK_TYPES, TaskType
from adarank.harness.data.tasks.base import Task, hold_out
from adarank.harness.device import choose_device, choose_dtype, choose_precision
from adarank.harness.models import Base, Built
from adarank.harness.run import distributed, identity
from adarank.harness.run.causal import check_settings
from adarank.harness.run.microbatches import check_microbatches
from adarank.harness.run.prepare import check_optimizer
from adarank.harness.run.ranks_from import RankMap, read_rank_map
from adarank.runs import state
from adarank.targets import resolve_targets

UNLIMITED = 10**30  # the value that Transformers' tokenizers use for "no limit"


@dataclass(frozen=True)
class Resolved:
    """One run before its model is built. targets: the targets that the adapter gets, or None if it takes none;
    rank_map: the ranks of ranks_from; dtype: the dtype of frozen weights."""

    spec: Spec
    task: Task
    base: Base
    targets: str | list[str] | None
    rank_map: RankMap | None
    device: torch.device
    dtype: str

    @property
    def task_type(self) -> TaskType:
        return TASK_TYPES[self.task.task_type]

    @cached_property
    def folder(self) -> Path:
        """The run's folder, `<method>-<digest of everything that affects its result>-s<seed>`."""
        decides = identity.decides(self.spec, self.task, self.base, self.dtype, self.targets, self.rank_map)
        return identity.run_folder(self.spec.out, self.spec.method, decides, self.spec.seed)

    @property
    def title(self) -> str:
        return identity.title(self.spec)


def resolve(config: DictConfig, overrides: Sequence[str], choices: Mapping[str, Any]) -> Resolved:
    """Find and check everything that determines the run without building or writing anything. Raises SettingError."""
    spec = settle(config, overrides, choices)
    distributed.join()
    distributed.on_main(partial(state.check_writable, spec.out))
    rank_map = None if spec.ranks_from is None else read_rank_map(spec.ranks_from)
    if rank_map is not None:
        if "rank" in typed_keys(overrides) and spec.rank != rank_map.rank:
            raise SettingError(
                f"rank must equal that of the run in ranks_from, {rank_map.rank}, or be omitted (got {spec.rank})"
            )
        spec = replace(spec, rank=rank_map.rank, init_rank=rank_map.initial)
    device = choose_device()
    spec = replace(spec, train=replace(spec.train, precision=choose_precision(spec.train.precision, device)))
    check_optimizer(spec.train.optimizer, device)
    task, base = load_task(spec), load_base(spec)
    check_settings(spec, task)
    check_microbatches(spec, TASK_TYPES[task.task_type])
    targets = chosen_targets(spec, task, base)
    return Resolved(spec, task, base, targets, rank_map, device, frozen_dtype(spec, base, device))


def load_task(spec: Spec) -> Task:
    """The task's rows, with dev split off from train if `holdout` is set."""
    if spec.task is None:
        raise SettingError("task must be set to a task (got none)")
    return hold_out(spec.task(), spec.holdout)


def load_base(spec: Spec) -> Base:
    """The base model, found but not built."""
    if spec.model is None:
        raise SettingError("model must be set to a model (got none)")
    base: Base = spec.model()
    return base


def chosen_targets(spec: Spec, task: Task, base: Base) -> str | list[str] | None:
    """The targets that the adapter gets; None for a method that takes none."""
    if not spec.takes("targets"):
        return None
    return resolve_targets(base, spec.targets, spec.target_modules, TASK_TYPES[task.task_type])


def frozen_dtype(spec: Spec, base: Base, device: torch.device) -> str:
    """The dtype of the weights that a method freezes; full fine-tuning freezes none and uses fp32 (or fp64)."""
    dtype = choose_dtype(base.dtype, base.stored, spec.train.precision, device)
    return dtype if spec.adapter is not None or dtype == "fp64" else "fp32"


def longest_input(model: Any) -> int:
    """The number of tokens for which a model has positions, UNLIMITED if its positions are only relative.

    The model's config decides, because tokenizers often state a smaller number (256 for some encoders that read
    512) or a limit that does not exist (T5). RoBERTa and its relatives start counting positions after the padding
    token's id, so that a table of 514 positions reads 512 tokens.
    """
    config = model.config.get_text_config()
    stated = (getattr(config, name, None) for name in ("max_position_embeddings", "max_encoder_position_embeddings"))
    limit: int = next((number for number in stated if number and number > 0), UNLIMITED)
    if not getattr(config, "position_biased_input", True):  # DeBERTa v3
        return UNLIMITED
    tables = [
        module.padding_idx
        for module in model.modules()
        if isinstance(module, nn.Embedding) and module.num_embeddings == limit and module.padding_idx is not None
        if module is not model.get_input_embeddings()
    ]
    return limit - tables[0] - 1 if tables else limit


def check_image_size(model: Any, processor: Any, name: str) -> None:
    """Raise SettingError if the model does not read images of the size to which its processor resizes them."""
    pixels = processor(np.zeros((64, 64, 3), dtype=np.uint8), return_tensors="pt")["pixel_values"]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model(pixel_values=pixels.to(model.dtype))
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise SettingError(
            f"the model {name} must read images of the size that its image processor makes, {pixels.shape[-2]} × "
            f"{pixels.shape[-1]} ({reason}); correct its preprocessor_config.json"
        ) from None


def set_attention(model: Any, attention: str) -> None:
    """Set the attention implementation of a Transformers model to model.attention, or raise SettingError."""
    from transformers.utils import is_flash_attn_2_available

    if attention == "flash_attention_2" and not is_flash_attn_2_available():
        raise SettingError(
            "model.attention=flash_attention_2: the package flash-attn is not installed, or there is no CUDA device; "
            "choose sdpa, eager or auto"
        )
    try:
        model.set_attn_implementation(attention)
    except (ValueError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise SettingError(
            f"model.attention must be auto or one that {type(model).__name__} supports (got {attention}; {reason})"
        ) from None


def build(spec: Spec, task: Task, base: Base, device: torch.device) -> Built:
    """The base model, quantised if requested, with its head, which depends only on the seed so that every method starts
    from the same one.

    A low-rank method loads a bf16 checkpoint in bf16 if its frozen weights stay in bf16. All other trained parameters
    start from fp32 weights without further rounding.
    """
    task_type, dtype = TASK_TYPES[task.task_type], frozen_dtype(spec, base, device)
    torch.manual_seed(spec.seed)
    loaded = dtype if base.stored == dtype and (spec.low_rank or dtype == "fp64") else "fp32"
    built = replace(base.build(task_type.outputs(task), task_type, loaded), dtype=dtype)
    if base.attention != "auto":
        set_attention(built.model, base.attention)
    name_classes(built.model, task.labels)
    if built.image_processor is None:
        built.tokenizer.model_max_length = longest_input(built.model)
    else:
        check_image_size(built.model, built.image_processor, base.name)
    if spec.quantization is not None:
        spec.quantization(model=built.model, device=device, precision=spec.train.precision)
    return built
