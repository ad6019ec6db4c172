"""A quantised base: QLoRA's 4-bit NormalFloat (Dettmers et al. 2023, arXiv 2305.14314), by bitsandbytes."""

from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import nn

from adarank.adapters import layers
from adarank.errors import SettingError
from adarank.harness.models import kept_in_fp32
from adarank.pieces import needs
from adarank.targets import block_linears


@needs("model", "device", "precision")
def nf4(
    model: nn.Module,
    device: torch.device,
    precision: str,
    double_quantization: bool = True,
    compute_dtype: Literal["auto", "fp32", "bf16"] = "auto",
) -> None:
    """Replace every linear in the model's blocks, in place, with bitsandbytes' 4-bit layer on `device`.

    Embeddings, pooler and head keep their weights, and so do the modules that Transformers keeps in fp32 (T5's wo).
    double_quantization: whether the scales (one in fp32 per block of 64 weights) are themselves stored in 8 bits (§3).
    compute_dtype: the dtype to which the 4-bit weights are dequantised; auto is bf16 if precision is "bf16" (autocast),
    else fp32. Layers are converted one by one, so that memory never holds the whole model twice. Raises SettingError if
    bitsandbytes is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise SettingError("quantization=nf4: bitsandbytes is not installed; pip install 'adarank[quant]'")
    from bitsandbytes.nn import Linear4bit, Params4bit

    chosen = precision if compute_dtype == "auto" else compute_dtype
    dtype = torch.bfloat16 if chosen == "bf16" else torch.float32
    in_fp32 = kept_in_fp32(model)
    for name in block_linears(model):
        if not in_fp32.isdisjoint(name.split(".")):
            continue
        base: Any = model.get_submodule(name)
        layer = layers.layer_of(base)
        assert layer is not None
        weight = layer.matrix(base).detach().contiguous()
        d_in, d_out = layer.size(base)
        bias, double = base.bias is not None, double_quantization
        new = Linear4bit(d_in, d_out, bias, dtype, double, quant_type="nf4", device="meta")
        new.weight = Params4bit(weight, False, compress_statistics=double, quant_type="nf4", module=new)
        if base.bias is not None:
            new.bias = nn.Parameter(base.bias.detach(), requires_grad=False)
        model.set_submodule(name, new.to(device).train(base.training))
    layers.keep_gradients(model)
