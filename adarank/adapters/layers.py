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

import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
    columns = F.embedding(ids, Q.t(), base.padding_idx)
    return ((columns * gain) @ P).to(base.weight.dtype)


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
    warnings.warn(
        "merging into a 4-bit base dequantises it: the merged layers are plain nn.Linear in "
        f"{base.compute_dtype or base.weight.quant_state.dtype}",
        stacklevel=4,
    )
    weight = _dequantised(base)
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
    """The kind of `base`, None where it cannot be wrapped."""
    name = type(base).__name__
    if name == "Linear4bit":
        return LINEAR_4BIT
    if name == "Conv1D" and hasattr(base, "nf"):
        return CONV1D
    if isinstance(base, nn.Linear):
        return LINEAR
    if isinstance(base, nn.Conv2d):
        return CONV2D
    if isinstance(base, nn.Embedding):
        return EMBEDDING
    return None


def refusal(base: nn.Module) -> str | None:
    """Why a layer of a known kind cannot be wrapped as it is, None where it can."""
    if isinstance(base, nn.Conv2d) and base.groups != 1:
        return f"it is a convolution in {base.groups} groups, which has no one matrix"
    if isinstance(base, nn.Embedding) and (base.max_norm is not None or base.sparse):
        return "it is an embedding with max_norm or sparse gradients"
    return None
