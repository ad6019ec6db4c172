"""The types of layer that a low-rank adapter can wrap, and the operations that it needs for each.

A layer's weight is treated as one matrix W [d_out, d_in] and its low-rank change as ΔW = s·Pᵀ diag(λ) Q:

    type         matrix W                      low-rank path, x -> Pᵀ (gain ⊙ Q x)
    Linear       weight                        two products
    Conv1D       weightᵀ (GPT-2's linear)      two products
    Conv2d       [out, in·kh·kw]               a convolution with r kernels Q, a 1 × 1 convolution with Pᵀ
    Embedding    weightᵀ [dim, entries]        columns of Q looked up, then a product
    Linear4bit   weight, dequantised           two products in the input's dtype
    Expert       one matrix of a stack         two products

Conv1D, Linear4bit and modules of stacked experts are recognised by their names or attributes, so that neither
Transformers nor bitsandbytes is imported here.
"""

import math
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adarank.errors import SettingError

# (base, x, Q [r, d_in], gain [r], P [r, d_out]) -> the low-rank path's output, in x's dtype (an embedding: Q's)
Delta = Callable[[Any, Tensor, Tensor, Tensor, Tensor], Tensor]


class Layer(NamedTuple):
    """One type of layer. size(base) -> (d_in, d_out); matrix(base) -> W [d_out, d_in], a view if possible; delta: see
    above; merged(base, ΔW, sign) -> the module that computes W + sign·ΔW, usually base itself, changed in place."""

    name: str
    size: Callable[[Any], tuple[int, int]]
    matrix: Callable[[Any], Tensor]
    delta: Delta
    merged: Callable[[Any, Tensor, int], nn.Module]


def _products(base: Any, x: Tensor, Q: Tensor, gain: Tensor, P: Tensor) -> Tensor:
    return (F.linear(x, Q.to(x.dtype)) * gain.to(x.dtype)) @ P.to(x.dtype)


def _convolve(base: Any, x: Tensor, Q: Tensor, gain: Tensor, P: Tensor) -> Tensor:
    kernels = (Q * gain.unsqueeze(1)).view(-1, *base.weight.shape[1:]).to(x.dtype)
    h = base._conv_forward(x, kernels, None)
    return F.conv2d(h, P.t().reshape(*P.t().shape, 1, 1).to(x.dtype))


def _look_up(base: Any, ids: Tensor, Q: Tensor, gain: Tensor, P: Tensor) -> Tensor:
    out = (F.embedding(ids, Q.t()) * gain) @ P
    if base.padding_idx is not None:  # the padding entry is not trained, as in the base
        out = torch.where((ids == base.padding_idx).unsqueeze(-1), out.detach(), out)
    return out.to(base.weight.dtype)


def _shift(shaped: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor, int], nn.Module]:
    """W ← W + sign·ΔW in place, ΔW in the weight's own shape; the sum is taken in ΔW's dtype and rounded once."""

    @torch.no_grad()
    def merged(base: Any, delta: Tensor, sign: int) -> nn.Module:
        weight = base.weight
        weight.copy_(weight.to(delta.dtype).add(shaped(base, delta), alpha=sign))
        return base  # type: ignore[no-any-return]

    return merged


def _dequantised(base: Any) -> Tensor:
    library = sys.modules[type(base).__module__.partition(".")[0]]  # already imported, since it made the layer
    weight: Tensor = library.functional.dequantize_4bit(base.weight.data, base.weight.quant_state)
    return weight


@torch.no_grad()
def _merged_4bit(base: Any, delta: Tensor, sign: int) -> nn.Module:
    """A plain nn.Linear, because the sum cannot be stored in 4 bits."""
    if sign < 0:
        return base  # unmerging: the quantised layer never changed
    weight = _dequantised(base)
    warnings.warn(
        f"merging into a 4-bit base dequantises it: the merged layers are plain nn.Linear in {weight.dtype}",
        stacklevel=5,
    )
    plain = nn.Linear(base.in_features, base.out_features, base.bias is not None, weight.device, weight.dtype)
    plain.weight.copy_(weight.to(delta.dtype) + delta)
    if base.bias is not None:
        plain.bias.copy_(base.bias)
    return plain.requires_grad_(False).train(base.training)


def _features(base: Any) -> tuple[int, int]:
    return base.in_features, base.out_features


def _sides(base: Any) -> tuple[int, int]:
    d_in, d_out = base.weight.shape
    return d_in, d_out


class Expert(nn.Module):
    """One matrix of a stack of experts, as a layer without parameters of its own.

    owner: the module of stacked experts, which keeps the weights (see `stack_names`); part: the stack's name in it;
    number: the expert's index. weight [d_out, d_in] and bias [d_out] or None are views of the owner's tensors in any
    layout.
    """

    owner: Any

    def __init__(self, owner: nn.Module, part: str, number: int) -> None:
        super().__init__()
        self.__dict__["owner"] = owner  # not a child, because the model holds it elsewhere
        self.part, self.number = part, number
        self.train(owner.training)

    @property
    def weight(self) -> Tensor:
        matrix: Tensor = getattr(self.owner, self.part)[self.number]
        return matrix.t() if self.owner.is_transposed else matrix

    @property
    def bias(self) -> Tensor | None:
        return getattr(self.owner, f"{self.part}_bias")[self.number] if self.owner.has_bias else None

    def _load_from_state_dict(self, *_: Any) -> None:
        """Do nothing: the state is in the owner's stack."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


def stack_names(module: nn.Module) -> tuple[str, ...]:
    """The names of a module's stacks of experts, in its own order; () unless its class has Transformers' decorator
    @use_experts_implementation, which sets these attributes."""
    marks = ("num_experts", "has_gate", "has_bias", "has_post_expert_norm", "is_transposed", "_is_expert_parallel")
    if not all(hasattr(module, mark) for mark in (*marks, "_apply_gate")):
        return ()
    names = ("gate_up_proj" if module.has_gate else "up_proj", "down_proj")
    return tuple(sorted(names, key=[*module._parameters, *names].index))


def storage_of(base: nn.Module) -> tuple[nn.Module, str]:
    """The module and parameter name that hold a layer's weight."""
    return (base.owner, base.part) if isinstance(base, Expert) else (base, "weight")


def weight_name(name: str, base: nn.Module) -> str:
    """The name in a state dict of the parameter with the weight of `base`, which the adapter called `name` wraps."""
    return f"{name.rsplit('.', 2)[0]}.base.{base.part}" if isinstance(base, Expert) else f"{name}.base.weight"


_turned = _shift(lambda base, delta: delta.t())
LINEAR = Layer("Linear", _features, lambda base: base.weight, _products, _shift(lambda base, delta: delta))
CONV1D = Layer("Conv1D", _sides, lambda base: base.weight.t(), _products, _turned)
CONV2D = Layer(
    "Conv2d",
    lambda base: (base.weight[0].numel(), len(base.weight)),
    lambda base: base.weight.flatten(1),
    _convolve,
    _shift(lambda base, delta: delta.view(base.weight.shape)),
)
EMBEDDING = Layer("Embedding", _sides, lambda base: base.weight.t(), _look_up, _turned)
LINEAR_4BIT = Layer("Linear4bit", _features, _dequantised, _products, _merged_4bit)
EXPERT = Layer(
    "Expert",
    lambda base: tuple(base.weight.shape)[::-1],
    lambda base: base.weight,
    _products,
    _shift(lambda base, delta: delta),
)
LAYER_TYPES = (LINEAR, CONV1D, CONV2D, EMBEDDING, LINEAR_4BIT, EXPERT)


def layer_of(base: nn.Module) -> Layer | None:
    """The type of `base`; None if it cannot be wrapped, like subclasses with their own lookup or convolution."""
    cls: Any = type(base)
    if cls is nn.Linear:
        return LINEAR
    if cls is Expert:
        return EXPERT
    names = [ancestor.__name__ for ancestor in cls.__mro__]  # parametrising a layer gives it a new subclass
    if "Linear4bit" in names:
        return LINEAR_4BIT
    if "Conv1D" in names and hasattr(base, "nf"):
        return CONV1D
    if isinstance(base, nn.Linear):
        return LINEAR
    if isinstance(base, nn.Conv2d) and (cls.forward, cls._conv_forward) == (nn.Conv2d.forward, nn.Conv2d._conv_forward):
        return CONV2D
    if isinstance(base, nn.Embedding) and cls.forward is nn.Embedding.forward:
        return EMBEDDING
    return None


def known_layer(base: nn.Module) -> Layer:
    """The type of `base`, a layer that can be wrapped."""
    layer = layer_of(base)
    assert layer is not None, f"{type(base).__name__} is not a layer that can be wrapped"
    return layer


class Wrapper(nn.Module):
    """A frozen layer, `base`, and the trained parameters around it, which are bypassed if `enabled` is false.

    like: the device and dtype of those parameters: the device on which the base computes, and its dtype, but at least
    fp32.
    """

    base: Any

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.enabled = True

    @property
    def like(self) -> dict[str, Any]:
        dtype = self.base.weight.dtype
        known = dtype if dtype.is_floating_point else torch.float32  # a quantised weight is stored as bytes
        return {"device": _device(self.base), "dtype": torch.promote_types(known, torch.float32)}

    # Some models read these from a wrapped layer (T5 reads wo.weight.dtype, say).
    @property
    def weight(self) -> Any:
        return self.base.weight

    @property
    def bias(self) -> Any:
        return self.base.bias


def _device(base: Any) -> Any:
    """The device on which `base` computes; accelerate keeps an offloaded weight on meta, and its hook knows the
    device."""
    offloaded = base.weight.is_meta and getattr(base, "_hf_hook", None)
    device = getattr(offloaded, "execution_device", None)
    return base.weight.device if device is None else device


def wrappers_of(model: nn.Module) -> dict[str, Wrapper]:
    """All adapters in `model`, low-rank ones and bottlenecks, by module name, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Wrapper)}


FOREIGN = ("peft.", "loralib.", "adapters.methods.")  # modules that define the adapters of other libraries


def check_unadapted(model: nn.Module) -> None:
    """Raise SettingError if `model` already has adapters, ours or those of another library."""
    if wrappers_of(model):
        raise SettingError("the model already has adapters; merge them first, or start from a freshly loaded base")
    for name, module in model.named_modules():
        if any(cls.__module__.startswith(FOREIGN) for cls in type(module).__mro__):
            raise SettingError(
                f"the model already has adapters of another library ({name or 'it'} is a {type(module).__name__}); "
                "merge them first (PEFT: model.merge_and_unload()), or load them with adarank.from_peft into a fresh "
                "base"
            )


def _computed(base: nn.Module) -> str | None:
    """Why nothing can be added to the weight of `base` if it is not a parameter; None if it is one."""
    owner, part = storage_of(base)
    if isinstance(owner._parameters.get(part), Tensor):
        return None
    return (
        "its weight is computed in each forward pass (remove_parametrizations, remove_weight_norm, "
        "remove_spectral_norm and prune.remove of torch.nn.utils turn it into a parameter)"
    )


def refusal(base: nn.Module, parent: nn.Module) -> str | None:
    """Why a layer of a known type, a child of `parent`, cannot be wrapped; None if it can."""
    if why := _computed(base):
        return why
    if isinstance(base, Expert):
        return _refusal_of_experts(base)
    if isinstance(parent, nn.MultiheadAttention):
        return "nn.MultiheadAttention reads its weight without calling it"
    if isinstance(parent, nn.TransformerEncoderLayer) and torch.backends.mha.get_fastpath_enabled():
        return (
            "nn.TransformerEncoderLayer's fast path reads its weight without calling it "
            "(torch.backends.mha.set_fastpath_enabled(False) disables it)"
        )
    if isinstance(base, nn.Conv2d) and base.groups != 1:
        return f"it is a convolution in {base.groups} groups, whose weight is not one matrix"
    if isinstance(base, nn.Embedding) and (base.max_norm is not None or base.sparse or base.scale_grad_by_freq):
        return "it is an embedding with max_norm, sparse gradients or scale_grad_by_freq"
    weight: Any = base.weight
    if layer_of(base) is not LINEAR_4BIT and not weight.dtype.is_floating_point:
        return f"its weight is stored as {weight.dtype}, to which ΔW cannot be added"
    if _device(base) == torch.device("meta") and "forward" in base.__dict__:
        return "its weight is offloaded, and the device on which it computes is unknown"
    return None


def _refusal_of_experts(base: Expert) -> str | None:
    """Why the module of experts to which `base` belongs cannot be wrapped, although its class can; None if it can.

    accelerate replaces the forward of modules that it spreads over devices, but only to move their inputs."""
    owner, weight = base.owner, base.weight
    replaced = "forward" in owner.__dict__
    if owner._is_expert_parallel:
        return "its experts are split over several devices (expert parallelism)"
    if weight.dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        return f"its weight is stored as {weight.dtype}, to which ΔW cannot be added"
    if replaced and weight.is_meta:
        return "its weight is offloaded, and adapters of stacked experts read it directly"
    if replaced and not hasattr(owner, "_hf_hook"):
        return "the forward of its experts was replaced, but adapters of stacked experts do not call it"
    return None


def check_mergeable(bases: Mapping[str, Any]) -> None:
    """Raise SettingError, naming the layer, if adding ΔW to its weight would not add ΔW to the function that it
    computes."""
    for name, base in bases.items():
        why = _computed(base)
        if why is None and base.weight.is_meta:
            why = "its weight is on the meta device, without values; load the model without offloading"
        elif why is None and not _computes_plainly(base):
            why = "its forward was replaced by one that does not compute what the layer's class does"
        if why:
            raise SettingError(f"the weight of {name} cannot be changed by ΔW: {why}")


@torch.no_grad()
def _computes_plainly(base: Any) -> bool:
    """Whether a layer whose forward was replaced still gives its class's output, tested on one input."""
    layer = layer_of(base)
    plain = nn.Linear.forward if layer is LINEAR else type(base).forward
    if getattr(base.forward, "__func__", None) is plain:
        return True
    device = _device(base)
    x = torch.arange(2, device=device) % len(base.weight)
    if layer is not EMBEDDING:
        spans = (
            [d * (k - 1) + 1 for d, k in zip(base.dilation, base.kernel_size, strict=True)] if layer is CONV2D else []
        )
        sides = (base.in_channels, *spans) if layer is CONV2D else (known_layer(base).size(base)[0],)
        dtype = base.weight.dtype if base.weight.is_floating_point() else torch.float32
        x = torch.arange(2 * math.prod(sides), device=device).cos().to(dtype).view(2, *sides)
    expected, found = plain(base, x), base.forward(x)
    return bool((found - expected).norm() <= torch.finfo(expected.dtype).eps ** 0.5 * expected.norm())


def numel(parameter: Tensor) -> int:
    """The number of weights in a parameter; a 4-bit parameter stores two per byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)


def keep_gradients(model: nn.Module) -> None:
    """Keep 4-bit layers in the format that lets gradients through.

    On CPUs with AVX512-BF16, bitsandbytes repacks a layer for inference at its first evaluation, after which gradients
    no longer pass and its scales are rounded to bf16. Raises SettingError for a layer that has been repacked.
    """
    for name, module in model.named_modules():
        if layer_of(module) is not LINEAR_4BIT:
            continue
        if getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False):
            raise SettingError(
                f"the 4-bit layer {name} was repacked for inference when it was evaluated, and no longer passes "
                "gradients; adapt a freshly loaded model before its first evaluation"
            )
        module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
