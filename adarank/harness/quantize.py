"""A quantised base: QLoRA's 4-bit NormalFloat (Dettmers et al. 2023, arXiv 2305.14314), by bitsandbytes."""

from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import nn

from adarank.adapters import layers
from adarank.adapters.inject import block_linears
from adarank.errors import SettingError


def nf4(
    model: nn.Module,
    device: torch.device,
    precision: str,
    double_quantization: bool = True,
    compute_dtype: Literal["auto", "fp32", "bf16"] = "auto",
) -> None:
    """Replace every linear inside the model's blocks, in place, by bitsandbytes' 4-bit layer on `device`.

    Embeddings, pooler and head keep their weights, and so do the modules that Transformers keeps in fp32 (T5's wo).
    double_quantization: the scales (one fp32 a block of 64 weights) are themselves stored in 8 bits (§3).
    compute_dtype: what the 4-bit weights are turned into for a product; auto: bf16 where precision is "bf16" (autocast),
    else fp32. Layer by layer, so that the whole model is never held twice. Raises SettingError without bitsandbytes.
    """
    if find_spec("bitsandbytes") is None:
        raise SettingError("quantization=nf4: bitsandbytes is not installed; pip install 'adarank[quant]'")
    from bitsandbytes.nn import Linear4bit, Params4bit

    chosen = precision if compute_dtype == "auto" else compute_dtype
    dtype = torch.bfloat16 if chosen == "bf16" else torch.float32
    for name in block_linears(model):
        if kept_in_fp32(model, name):
            continue
        base: Any = model.get_submodule(name)
        layer = layers.layer_of(base)
        assert layer is not None
        weight = layer.matrix(base).detach().contiguous()
        d_in, d_out = layer.size(base)
        new = Linear4bit(
            d_in, d_out, base.bias is not None, dtype, double_quantization, quant_type="nf4", device="meta"
        )
        new.weight = Params4bit(
            weight, requires_grad=False, compress_statistics=double_quantization, quant_type="nf4", module=new
        )
        if base.bias is not None:
            new.bias = nn.Parameter(base.bias.detach(), requires_grad=False)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, new.to(device).train(base.training))
    layers.keep_gradients(model)


def kept_in_fp32(model: Any, name: str) -> bool:
    """Whether Transformers names the module among those whose weight its forward pass expects as it is."""
    names = {*(getattr(model, "_keep_in_fp32_modules", None) or ())}
    names |= {*(getattr(model, "_keep_in_fp32_modules_strict", None) or ())}
    return not names.isdisjoint(name.split("."))
