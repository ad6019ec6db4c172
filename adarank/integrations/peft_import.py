"""Import LoRA, DoRA and AdaLoRA adapters of Hugging Face PEFT (checked against 0.21.2) without importing PEFT.

    LoRA      W + s·B A                s = α / r, or α / √r (rsLoRA)     kind lora: Q = A, λ = 1, P = Bᵀ
    DoRA      m·(W + s·B A)/‖W + s·B A‖, s as LoRA's                     kind dora: the same, and m
    AdaLoRA   W + s·B (E ⊙ A)          s = α / (init_r + 1e-5)           kind svd:  Q = A, λ = E, P = Bᵀ

`alpha_pattern` and `rank_pattern` give the α and r of individual modules. AdaLoRA's rank_pattern holds a list of
booleans for each module, its scale stays that of init_r, and it has no rsLoRA.
"""

import math
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adarank.adapters.base import unwrapped
from adarank.adapters.layers import CONV1D, CONV2D, EMBEDDING, LINEAR
from adarank.adapters.saving import put_adapter, read_files
from adarank.errors import SettingError
from adarank.integrations.peft_export import FILES, PREFIX
from adarank.targets import near

PEFT_TYPES = {"LORA": "lora", "ADALORA": "svd"}  # {PEFT's type: our kind}, without use_dora
# The settings that this module reads.
READ = {
    *("peft_type", "task_type", "base_model_name_or_path", "r", "init_r", "lora_alpha", "lora_dropout", "use_rslora"),
    *("rank_pattern", "alpha_pattern", "fan_in_fan_out", "modules_to_save", "bias", "init_lora_weights", "use_dora"),
}
# The modules are read from the tensors; the other settings concern training, or belong to settings that are refused.
WITHOUT_EFFECT = {
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "inference_mode", "auto_mapping"),
    *("peft_version", "revision", "megatron_core", "qalora_group_size", "runtime_config", "loftq_config", "eva_config"),
    *("corda_config", "lora_ga_config", "ensure_weight_tying", "target_r", "tinit", "tfinal", "deltaT", "beta1"),
    *("beta2", "orth_reg_weight", "total_step"),
}
KEEP_BASE = (True, False, None, "gaussian", "eva", "orthogonal")  # inits that leave the base unchanged
FACTORS = re.compile(
    r"(.+)\.(lora_A|lora_B|lora_E|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(?:\.weight)?"
)


def from_peft(model: nn.Module, folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Load a LoRA, DoRA or AdaLoRA adapter of PEFT into a freshly loaded base, so that you can keep training it.

    Returns {module name: adapter} of kind "lora", "dora" or "svd"; they are trainable, and so are the modules in
    modules_to_save. Raises SettingError, before anything is changed, if a file is missing or damaged, the adapter
    uses a setting that is not supported (trained biases, inits that change the base …; the message names it), or
    the model is not the base that it was made for (the message names the differing shapes). Only safetensors are read.

    Example:
        >>> import adarank, tempfile
        >>> from torch import nn
        >>> model = nn.ModuleDict({"query": nn.Linear(4, 4)})
        >>> _ = nn.init.ones_(adarank.adapt(model, "lora", rank=2)["query"].P)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     adarank.to_peft(model, folder)
        ...     fresh = nn.ModuleDict({"query": nn.Linear(4, 4)})
        ...     from_peft(fresh, folder)["query"].kind
        'lora'
    """
    model = unwrapped(model, changes=True)
    tensors, description, copies = _read(Path(folder))
    parameters = dict(model.named_parameters())
    for name, copy in copies.items():
        if name not in parameters or not torch.equal(parameters[name].cpu(), copy.to(parameters[name].dtype)):
            raise SettingError(f"{folder} was made for another base: its copy of {name} differs from the model's")
    return put_adapter(model, tensors, description, Path(folder))


def read_peft(folder: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, description) in adarank's own format, without a model."""
    tensors, description, _ = _read(Path(folder))
    return tensors, description


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Tensor]]:
    """(tensors, description, the base's own weights that PEFT saves with an adapted embedding)."""
    config, saved = read_files(path, FILES)
    kind = _kind(path, config)
    factors: dict[str, dict[str, Tensor]] = {}
    trained, copies, whole = {}, {}, set()
    for key, tensor in saved.items():
        name = key.removeprefix(PREFIX)
        tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        match = FACTORS.fullmatch(name)
        if key == name or (match is None and "lora_" in name):
            raise SettingError(
                f"{path} contains the tensor {key}, which does not belong to a plain LoRA, DoRA or AdaLoRA adapter"
            )
        if match is not None:
            factors.setdefault(match[1], {})[match[2].replace("embedding_", "")] = tensor
            if "embedding" in match[2]:
                factors[match[1]]["embedding"] = tensor
        elif name.endswith(".base_layer.weight"):
            copies[name.replace(".base_layer", "")] = tensor
        else:
            whole.add(_saved_module(path, config, name))
            trained[name] = tensor
    tensors, modules = dict(trained), {}
    for name, parts in factors.items():
        embedding = parts.pop("embedding", None) is not None
        converted, modules[name] = _module(path, config, name, parts, embedding)
        tensors |= {f"{name}.{part}": value.contiguous() for part, value in converted.items()}
    _warn_of_idle_keys(path, config, list(modules))
    description = {
        "kind": kind,
        "dropout": config.get("lora_dropout") or 0.0,
        "modules": modules,
        "trained": {name: list(tensor.shape) for name, tensor in trained.items()},
        "tied": {},
        "whole": sorted(whole),
        "base": {"class": None, "name": config.get("base_model_name_or_path"), "task": config.get("task_type")},
    }
    return tensors, description, copies


def _kind(path: Path, config: Mapping[str, Any]) -> str:
    """ "lora", "dora" or "svd". Raises SettingError for a setting that changes what the adapter computes, naming it."""
    kind = PEFT_TYPES.get(str(config.get("peft_type")))
    if kind is None:
        raise SettingError(
            f"{path}: peft_type must be one of {', '.join(PEFT_TYPES)} (got {config.get('peft_type')!r})"
        )
    refused = [(k, v) for k, v in config.items() if v and k not in READ | WITHOUT_EFFECT]
    if config.get("use_dora") and kind != "lora":
        refused.append(("use_dora", config["use_dora"]))
    if config.get("bias", "none") != "none":
        refused.append(("bias", config["bias"]))
    if config.get("init_lora_weights") not in KEEP_BASE:
        refused.append(("init_lora_weights", config["init_lora_weights"]))
    if refused:
        setting, value = refused[0]
        more = "; PEFT's path_initial_model_for_weight_conversion converts it to one" * (setting == "init_lora_weights")
        raise SettingError(f"{path} has {setting}={value!r}, which is not a plain LoRA, DoRA or AdaLoRA adapter{more}")
    dropout = config.get("lora_dropout") or 0.0
    if not isinstance(dropout, float | int) or not 0 <= dropout < 1:
        raise SettingError(f"{path}: lora_dropout must be at least 0 and less than 1 (got {dropout!r})")
    return "dora" if config.get("use_dora") else kind


def _module(
    path: Path, config: Mapping[str, Any], name: str, parts: dict[str, Tensor], embedding: bool
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """({"Q", "lam", "P"} and DoRA's {"magnitude"}, the module's part of the description)."""
    adalora, dora = config["peft_type"] == "ADALORA", bool(config.get("use_dora"))
    wanted = {"lora_A", "lora_B"} | ({"lora_E"} if adalora else set()) | ({"lora_magnitude_vector"} if dora else set())
    shapes = ", ".join(f"{part} {tuple(t.shape)}" for part, t in sorted(parts.items()))
    if parts.keys() != wanted:
        raise SettingError(f"{path} is damaged: {name} should have {' and '.join(sorted(wanted))} but has {shapes}")
    A, B = parts["lora_A"], parts["lora_B"]
    layer: dict[str, Any] = {"layer": CONV1D.name if config.get("fan_in_fan_out") else LINEAR.name}
    if embedding:
        layer = {"layer": EMBEDDING.name}
    elif A.ndim == 4 and B.ndim == 4 and B.shape[2:] == (1, 1):
        layer = {"layer": CONV2D.name, "kernel": list(A.shape[1:]), "dilation": [1, 1], "padding_mode": "zeros"}
        A, B = A.flatten(1), B.flatten(1)
    E = parts["lora_E"].flatten() if adalora else A.new_ones(len(A) if A.ndim else 0)
    if A.ndim != 2 or B.ndim != 2 or not len(A) == B.shape[1] == len(E):
        raise SettingError(f"{path} is damaged: the factors of {name} do not fit each other ({shapes})")
    rank, pattern = len(A), config.get("rank_pattern") or {}
    if adalora:
        kept = pattern.get(f"{name}.lora_E", [True] * rank)
        if rank == len(kept) != sum(kept):  # the other triplets were never dropped
            index = torch.tensor([i for i, keep in enumerate(kept) if keep], dtype=torch.long)
            A, B, E = A[index], B[:, index], E[index]
        expected = sum(kept)
    else:
        expected = _by_pattern(path, pattern, name, config.get("r", 8))
    if len(A) != expected:
        raise SettingError(f"{path} is damaged: {name} has rank {rank} in one file, {expected!r} in the other")
    info = {"rank": len(A), "start_rank": None, "scale": _scale(path, config, name, len(A))}
    magnitude = {"magnitude": parts["lora_magnitude_vector"].flatten()} if dora else {}
    factors = {"Q": A, "lam": E, "P": B.t(), **magnitude}
    return factors, info | {"in_features": A.shape[1], "out_features": B.shape[0]} | layer


def _scale(path: Path, config: Mapping[str, Any], name: str, rank: int) -> float:
    """s, as PEFT computes it. Raises SettingError if it is not a number above 0."""
    try:
        if config["peft_type"] == "ADALORA":
            alpha, initial = config.get("lora_alpha", 8), float(config.get("init_r", 12))
            scale = (alpha if alpha > 0 else initial) / (initial + 1e-5)
        else:
            alpha = _by_pattern(path, config.get("alpha_pattern") or {}, name, config.get("lora_alpha", 8))
            scale = float(alpha / (rank**0.5 if config.get("use_rslora") else rank))
    except (TypeError, ValueError, ZeroDivisionError):
        scale = math.nan
    if not 0 < scale < math.inf:
        raise SettingError(f"{path} is damaged: lora_alpha, alpha_pattern or init_r gives no scale above 0 for {name}")
    return scale


def _by_pattern(path: Path, pattern: Mapping[str, Any], name: str, default: Any) -> Any:
    """The first entry whose key, a regular expression, matches the end of the name."""
    try:
        return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", name)), default)
    except (re.error, AttributeError):
        raise SettingError(
            f"{path} is damaged: rank_pattern or alpha_pattern is not a map of regular expressions"
        ) from None


def _warn_of_idle_keys(path: Path, config: Mapping[str, Any], names: Sequence[str]) -> None:
    """Warn of entries in rank_pattern or alpha_pattern that match no adapted module, which PEFT ignores silently."""
    literal = config["peft_type"] == "ADALORA"  # its keys are names of tensors
    for setting in ("rank_pattern", "alpha_pattern"):
        for key in config.get(setting) or {}:
            expression = re.escape(key.removesuffix(".lora_E")) if literal else key
            if not any(re.match(rf"(.*\.)?({expression})$", name) for name in names):
                warnings.warn(
                    f"{path}: the key {key!r} of {setting} matches no module of the adapter and has no effect; "
                    f"similar names: {near(key.removesuffix('.lora_E'), names)}",
                    stacklevel=4,
                )


def _saved_module(path: Path, config: Mapping[str, Any], name: str) -> str:
    """The outermost module of modules_to_save that a parameter belongs to."""
    saved, parts = tuple(config.get("modules_to_save") or ()), name.split(".")
    outer = next((m for i in range(1, len(parts)) if saved and (m := ".".join(parts[:i])).endswith(saved)), None)
    if outer is None:
        raise SettingError(
            f"{path} contains {name}, which is neither a LoRA factor nor in modules_to_save={list(saved)}"
        )
    return outer
