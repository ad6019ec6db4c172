"""Export a low-rank adapter as a plain LoRA folder of Hugging Face PEFT (checked against 0.21.2), without importing it.

PEFT computes W + (α / r)·B A with A [r, d_in], B [d_out, r]. Here s·λ is absorbed into B and α = r in every module:

    A = Q,  B = (s·λ ⊙ P)ᵀ

Modules of different ranks are listed in `rank_pattern` and `alpha_pattern`, whose keys are regular expressions. PEFT
refuses a rank of 0, so such a module is not a target. Modules trained as a whole (the head) go into `modules_to_save`.

With DoRA's magnitude (use_dora) every module has its m, [d_out] or, for a convolution, [1, d_out, 1, 1]. A module of
rank 0, which still has its magnitude, gets one triplet of zeros.

Experts stacked in one tensor are `target_parameters`. PEFT gives a stack of E experts one rank, so that the factors of
each expert are padded with zeros to the largest of the stack:

    A [E·r, d_in], expert by expert        B [d_out, r·E], triplet by triplet, one entry per expert

PEFT wraps a module of experts once for each of its stacks, the first one innermost. Its LoRA of a parameter has no
dropout.
"""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adarank.adapters.base import unwrapped
from adarank.adapters.layers import CONV1D, CONV2D, EMBEDDING, EXPERT
from adarank.adapters.lowrank import FACTORS, START, original_change, singular_triplets
from adarank.adapters.magnitude import Magnitude
from adarank.adapters.parametrisation import lookup
from adarank.adapters.saving import BOTTLENECK, adapter_state, write_files
from adarank.errors import SettingError
from adarank.targets import rank_pattern

PREFIX = "base_model.model."
FILES = ("adapter_config.json", "adapter_model.safetensors")
TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
}
# The modules that PEFT treats as the head of such a model and adds to modules_to_save.
HEADS = {"SEQ_CLS": {"classifier", "score"}, "QUESTION_ANS": {"qa_outputs"}}


def to_peft(model: nn.Module, folder: str | os.PathLike[str], uniform_rank: bool = False) -> None:
    """Write the adapters into `folder` as a LoRA that `PeftModel.from_pretrained` loads onto the original base.

    Adapters with a magnitude ("dora", "svd_dora") become a DoRA, use_dora=True, in which rank 0 is a triplet of zeros.
    Pruned triplets are left out. Where an init subtracted ΔW₀ from the base, the change of the original weight, ΔW −
    ΔW₀ of rank ≤ 2r, is decomposed by QR and SVD in fp64, and singular values below rounding error are dropped. Experts
    are padded with zeros to the largest rank in their stack, and the exported adapter has no dropout, which PEFT cannot
    apply to experts. uniform_rank: pad all modules with zeros to the largest rank, for engines that accept only one;
    the config then has no patterns.

    Raises SettingError, before anything is written, for anything that a LoRA adapter cannot hold: bottlenecks, modules
    trained in part, a model with no rank left; with uniform_rank also for other trained modules.

    Example:
        >>> import adarank, tempfile
        >>> from pathlib import Path
        >>> from torch import nn
        >>> model = nn.ModuleDict({"query": nn.Linear(4, 4), "value": nn.Linear(4, 4)})
        >>> adapters = adarank.adapt(model, "lora", rank=2)
        >>> _ = nn.init.ones_(adapters["query"].P)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     to_peft(model, folder)
        ...     sorted(path.name for path in Path(folder).iterdir())
        ['adapter_config.json', 'adapter_model.safetensors']
    """
    model = unwrapped(model)
    tensors, description = adapter_state(model)
    config, state = peft_state(tensors, description, uniform_rank)
    check_names(model, config)
    write_files(folder, dict(zip(FILES, (config, state), strict=True)))


def peft_state(
    tensors: Mapping[str, Tensor], description: Mapping[str, Any], uniform_rank: bool = False
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(adapter_config.json, adapter_model.safetensors) from the result of `adarank.adapters.saving.read_adapter`."""
    if description["kind"] == BOTTLENECK:
        raise SettingError(
            "a bottleneck adapter cannot be exported to PEFT, because it is not a low-rank change of a weight; keep it "
            "with adarank.save_adapter, or train a low-rank method"
        )
    parametrisation = lookup(description["kind"])
    if parametrisation is None:
        raise SettingError(
            "there is no low-rank adapter to export to PEFT; save the trained parameters with model.save_pretrained or "
            "adarank.save_adapter"
        )
    has_magnitude = parametrisation.module is Magnitude
    if not parametrisation.is_plain and parametrisation.fold is None and not has_magnitude:
        raise SettingError(f"an adapter of kind {parametrisation.name!r} cannot be exported as a plain LoRA; merge it")
    modules = description["modules"]
    if parametrisation.fold is not None:
        tensors = {**tensors, **{f"{name}.P": parametrisation.low_rank_P(tensors, name) for name in modules}}
    factors = {name: lora_factors(tensors, name, info) for name, info in modules.items()}
    stacks = _stacks(modules, factors)
    if has_magnitude:
        if expert := next((n for n, info in modules.items() if info.get("layer") == EXPERT.name), None):
            raise SettingError(f"PEFT has no DoRA of stacked experts, such as {expert}; merge the adapter instead")
        factors = {n: (A, B) if len(A) else (_padded(A, 1), _padded(B, 1)) for n, (A, B) in factors.items()}
    experts = {name for stack in stacks.values() for name in stack}
    ranks = {name: len(A) for name, (A, _) in factors.items() if len(A) and name not in experts}
    ranks |= {stack: max(len(factors[name][0]) for name in names) for stack, names in stacks.items()}
    if not ranks:
        raise SettingError("every module's rank is 0, so there is nothing to export; PEFT has no empty adapter")
    whole = _whole(description, uniform_rank)
    common = max(ranks.values()) if uniform_rank else Counter(ranks.values()).most_common(1)[0][0]
    state: dict[str, Tensor] = {}
    for name in ranks:
        padded = common if uniform_rank else ranks[name]
        if name in stacks:
            state |= _stacked(name, list(stacks), stacks[name], modules, factors, padded)
        else:
            state |= _laid_out(name, modules[name], *(_padded(part, padded) for part in factors[name]))
        if has_magnitude:
            magnitude = tensors[f"{name}.magnitude"]
            shape = (1, -1, 1, 1) if modules[name]["layer"] == CONV2D.name else (-1,)
            state[f"{PREFIX}{name}.lora_magnitude_vector"] = magnitude.view(shape)
    buffers = description.get("buffers", {})
    if outside := [name for name in buffers if not any(name.startswith(module + ".") for module in whole)]:
        raise SettingError(
            f"training changed {outside[0]}, a buffer that a LoRA of PEFT cannot hold, because its module was not "
            "trained as a whole; name the module in train=, or use adarank.merge and model.save_pretrained instead"
        )
    state |= {PREFIX + name: tensors[name] for name in (*description["trained"], *buffers)}
    state |= {PREFIX + name: tensors[source].clone() for name, source in description.get("tied", {}).items()}
    differing = {} if uniform_rank else {k: r for k, r in rank_pattern(ranks).items() if r != common}
    base = description.get("base") or {}
    config = {
        "peft_type": "LORA",
        "task_type": task_of(base.get("class") or "", whole),
        "base_model_name_or_path": base.get("name"),
        "r": common,
        "lora_alpha": common,
        "lora_dropout": 0.0 if stacks else description["dropout"],
        "rank_pattern": differing,
        "alpha_pattern": differing,
        "target_modules": [name for name in ranks if name not in stacks],
        **({"target_parameters": list(stacks)} if stacks else {}),
        "modules_to_save": whole or None,
        "fan_in_fan_out": any(modules[name].get("layer") == CONV1D.name for name in ranks.keys() - stacks.keys()),
        "bias": "none",
        "use_rslora": False,
        **({"use_dora": True} if has_magnitude else {}),
        "init_lora_weights": True,
        "inference_mode": True,
    }
    for name in ranks:
        if outer := [m for m in whole if re.match(rf"(^|.*\.){m}($|\..*)", name)]:  # PEFT's own rule
            raise SettingError(
                f"PEFT would ignore the adapter of {name}, because {outer[0]} was trained as a whole; merge it"
            )
    return config, {key: value.contiguous() for key, value in state.items()}


def lora_factors(tensors: Mapping[str, Tensor], name: str, info: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """(A [r, d_in], B [r, d_out]) with ΔW = Bᵀ A relative to the original weight, without triplets that are 0."""
    factors = (tensors[f"{name}.{part}"] for part in FACTORS)
    start = (tensors.get(f"{name}.{part}") for part in START)
    Q, gain, P = original_change(info["scale"], *factors, *start)
    if info.get("start_rank") is None:
        keep = gain != 0
        return Q[keep], (P * gain.unsqueeze(1))[keep]
    sizes = gain.abs() * Q.norm(dim=1) * P.norm(dim=1)
    V, sigma, U = singular_triplets(Q.double(), gain.double(), P.double())
    keep = sigma > sizes.max() * torch.finfo(Q.dtype).eps
    root = sigma[keep].sqrt().unsqueeze(1)
    return (V[keep] * root).to(Q.dtype), (U[keep] * root).to(Q.dtype)


def _stacks(modules: Mapping[str, Any], factors: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, list[str]]:
    """{name of a stack of experts: the names of its modules}, in the model's order, without stacks of rank 0."""
    stacks: dict[str, list[str]] = {}
    for name, info in modules.items():
        if info.get("layer") == EXPERT.name:
            stacks.setdefault(name.rpartition(".")[0], []).append(name)
    return {stack: names for stack, names in stacks.items() if any(len(factors[name][0]) for name in names)}


def _stacked(
    stack: str,
    stacks: Sequence[str],
    names: Sequence[str],
    modules: Mapping[str, Any],
    factors: Mapping[str, tuple[Tensor, Tensor]],
    rank: int,
) -> dict[str, Tensor]:
    """The two tensors of a stack of experts in PEFT's names and shapes, each expert's factors padded to `rank`."""
    info = modules[names[0]]
    A, B = (
        factors[names[0]][0].new_zeros(info["experts"], rank, info[side]) for side in ("in_features", "out_features")
    )
    for name in names:
        number = int(name.rpartition(".")[2])
        for whole, part in zip((A, B), factors[name], strict=True):
            whole[number] = _padded(part, rank)
    owner = stack.rpartition(".")[0]
    outer = [other for other in stacks[stacks.index(stack) + 1 :] if other.rpartition(".")[0] == owner]
    prefix = PREFIX + owner + ".base_layer" * len(outer)
    return {f"{prefix}.lora_A.weight": A.flatten(0, 1), f"{prefix}.lora_B.weight": B.permute(2, 1, 0).flatten(1)}


def _padded(rows: Tensor, rank: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros(rank - len(rows), rows.shape[1])])


def _laid_out(name: str, info: Mapping[str, Any], A: Tensor, B: Tensor) -> dict[str, Tensor]:
    """The two tensors in PEFT's names and shapes."""
    layer = info.get("layer")
    if layer is None:
        raise SettingError(
            f"the adapter does not name the layer type of {name}; load it into its base and save it again"
        )
    if layer == EMBEDDING.name:
        return {f"{PREFIX}{name}.lora_embedding_A": A, f"{PREFIX}{name}.lora_embedding_B": B.t()}
    if layer == CONV2D.name:
        if any(d != 1 for d in info["dilation"]) or info["padding_mode"] != "zeros":
            raise SettingError(
                f"PEFT's LoRA of a convolution supports neither dilation nor padding_mode, but {name} has "
                f"dilation={info['dilation']}, padding_mode={info['padding_mode']!r}; merge the adapter instead"
            )
        A, B = A.view(-1, *info["kernel"]), B.view(*B.shape, 1, 1)
    return {f"{PREFIX}{name}.lora_A.weight": A, f"{PREFIX}{name}.lora_B.weight": B.transpose(0, 1)}


def task_of(model_class: str, whole: Sequence[str]) -> str | None:
    """PEFT's task_type for a Transformers class whose modules `whole` are trained as a whole; None if the head does not
    have one of the names that PEFT looks for."""
    task = next((task for end, task in TASKS.items() if model_class.endswith(end)), None)
    return None if task in HEADS and not HEADS[task] & set(whole) else task


def _whole(description: Mapping[str, Any], uniform_rank: bool) -> list[str]:
    """The modules for modules_to_save."""
    whole, trained = description.get("whole", []), (*description["trained"], *description.get("tied", ()))
    for name in trained:
        if uniform_rank:
            raise SettingError(
                f"uniform_rank=true is for engines that refuse modules_to_save, but {name} was trained as a whole; use "
                "adarank.merge and model.save_pretrained instead, or uniform_rank=false"
            )
        if not any(name.startswith(module + ".") for module in whole):
            raise SettingError(
                f"PEFT saves only whole modules with a LoRA, but of {name.rpartition('.')[0] or 'the model'} only "
                f"{name} was trained; use adarank.merge and model.save_pretrained instead"
            )
    return list(whole)


def check_names(model: nn.Module, config: Mapping[str, Any]) -> None:
    """Raise SettingError if PEFT, which matches the endings of names, would affect another module, too."""
    targets = {*config["target_modules"], *config.get("target_parameters", ())}
    whole = set(config["modules_to_save"] or ())
    for name, _ in model.named_modules():
        also = [t for t in targets if name.endswith("." + t)] if name not in targets else []
        also += [w for w in whole if name.endswith(w)] if name not in whole else []
        if also:
            raise SettingError(
                f"PEFT would confuse {name} with {also[0]}, because the latter is its ending; rename one of them, "
                "adapt or train both, or merge"
            )
