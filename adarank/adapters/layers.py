"""The layers that a low-rank adapter can wrap: what it needs to know of each kind, and nothing else.

A layer's weight is thought of as one matrix W [d_out, d_in] and its low-rank change as ΔW = s·Pᵀ diag(λ) Q:

    kind         matrix W                      low-rank path, x -> Pᵀ (gain ⊙ Q x)
    Linear       weight                        two products
    Conv1D       weightᵀ (GPT-2's linear)      two products
    Conv2d       [out, in·kh·kw]               a convolution with r kernels Q, a 1 × 1 convolution with Pᵀ
    Embedding    weightᵀ [dim, entries]        columns of Q looked up, then a product
    Linear4bit   weight, dequantised           two products in the input's dtype

Conv1D and Linear4bit are known by their names, so that neither Transformers nor bitsandbytes is imported here.
"""

import math
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adarank.errors import SettingError

# (base, x, Q [r, d_in], gain [r], P [r, d_out]) -> the low-rank path's output, in x's dtype (an embedding: Q's)
Delta = Callable[[Any, Tensor, Tensor, Tensor, Tensor], Tensor]


class Layer(NamedTuple):
    """One kind of layer. size(base) -> (d_in, d_out); matrix(base) -> W [d_out, d_in], a view where it can be one;
    delta: see above; merged(base, ΔW, sign) -> the module that computes W + sign·ΔW, by default base itself, changed."""

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
    if base.padding_idx is not None:  # the padding entry learns nothing, here as in the base
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
    library = sys.modules[type(base).__module__.partition(".")[0]]  # loaded: it made the layer
    weight: Tensor = library.functional.dequantize_4bit(base.weight.data, base.weight.quant_state)
    return weight


@torch.no_grad()
def _merged_4bit(base: Any, delta: Tensor, sign: int) -> nn.Module:
    """A plain nn.Linear: a sum cannot be kept in 4 bits."""
    if sign < 0:
        return base  # unmerging: the quantised layer never changed
    weight = _dequantised(base)
    warnings.warn(
        f"merging into a 4-bit base dequantises it: the merged layers are plain nn.Linear in {weight.dtype}",
        stacklevel=4,
    )
    plain = nn.Linear(base.in_features, base.out_features, base.bias is not None, weight.device, weight.dtype)
    plain.weight.copy_(weight.to(delta.dtype) + delta)
    if base.bias is not None:
        plain.bias.copy_(base.bias)
    return plain.requires_grad_(False).train(base.training)


def _weight(base: Any) -> Tensor:
    weight: Tensor = base.weight
    return weight


def _transposed(base: Any) -> Tensor:
    return _weight(base).t()


def _flat(base: Any) -> Tensor:
    return _weight(base).flatten(1)


def _features(base: Any) -> tuple[int, int]:
    return base.in_features, base.out_features


def _sides(base: Any) -> tuple[int, int]:
    d_in, d_out = base.weight.shape
    return d_in, d_out


def _kernel_sides(base: Any) -> tuple[int, int]:
    d_out, d_in = _flat(base).shape
    return d_in, d_out


_turned = _shift(lambda base, delta: delta.t())
LINEAR = Layer("Linear", _features, _weight, _products, _shift(lambda base, delta: delta))
CONV1D = Layer("Conv1D", _sides, _transposed, _products, _turned)
CONV2D = Layer("Conv2d", _kernel_sides, _flat, _convolve, _shift(lambda base, delta: delta.view(base.weight.shape)))
EMBEDDING = Layer("Embedding", _sides, _transposed, _look_up, _turned)
LINEAR_4BIT = Layer("Linear4bit", _features, _dequantised, _products, _merged_4bit)
KINDS = (LINEAR, CONV1D, CONV2D, EMBEDDING, LINEAR_4BIT)


def layer_of(base: nn.Module) -> Layer | None:
    """The kind of `base`, None where it cannot be wrapped: subclasses that look up or convolve in their own way, say."""
    name = type(base).__name__
    if name == "Linear4bit":
        return LINEAR_4BIT
    if name == "Conv1D" and hasattr(base, "nf"):
        return CONV1D
    if isinstance(base, nn.Linear):
        return LINEAR
    if isinstance(base, nn.Conv2d) and _convolves(type(base)):
        return CONV2D
    if isinstance(base, nn.Embedding) and type(base).forward is nn.Embedding.forward:
        return EMBEDDING
    return None


def _convolves(kind: type[nn.Conv2d]) -> bool:
    return kind.forward is nn.Conv2d.forward and kind._conv_forward is nn.Conv2d._conv_forward


def refusal(base: nn.Module, parent: nn.Module) -> str | None:
    """Why a layer of a known kind, a child of `parent`, cannot be wrapped as it is, else None."""
    if isinstance(parent, nn.MultiheadAttention):
        return "nn.MultiheadAttention reads its weight without calling it"
    if isinstance(parent, nn.TransformerEncoderLayer) and torch.backends.mha.get_fastpath_enabled():
        return (
            "nn.TransformerEncoderLayer's fast path reads its weight without calling it "
            "(torch.backends.mha.set_fastpath_enabled(False) switches it off)"
        )
    if isinstance(base, nn.Conv2d) and base.groups != 1:
        return f"it is a convolution in {base.groups} groups, which has no one matrix"
    if isinstance(base, nn.Embedding) and (base.max_norm is not None or base.sparse or base.scale_grad_by_freq):
        return "it is an embedding with max_norm, or with sparse gradients or such scaled by frequency"
    weight: Any = base.weight
    if layer_of(base) is not LINEAR_4BIT and not weight.dtype.is_floating_point:
        return f"its weight is stored as {weight.dtype}, which takes no sum"
    return None


def numel(parameter: Tensor) -> int:
    """The weights that a parameter stands for; a 4-bit one stores two in a byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)


def keep_gradients(model: nn.Module) -> None:
    """Keep 4-bit layers in the format that gradients pass.

    On CPUs with AVX512-BF16, bitsandbytes repacks a layer at its first evaluation for inference alone: no gradient
    passes it any more, and its scales are rounded to bf16. Raises SettingError for a layer that it has repacked.
    """
    for name, module in model.named_modules():
        if layer_of(module) is not LINEAR_4BIT:
            continue
        if getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False):
            raise SettingError(
                f"the 4-bit layer {name} was repacked for inference when it was evaluated, and gradients do not pass "
                "it; adapt a freshly loaded model before its first evaluation"
            )
        module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
