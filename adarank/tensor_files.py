"""Writes safetensors files tensor by tensor, so that saving never holds a second copy of the data in memory.

The format (https://huggingface.co/docs/safetensors): the header's length in 8 bytes, little-endian; the header, JSON,
{name: {dtype, shape, data_offsets}}; the tensors' bytes. safetensors' own writers take all bytes at once.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import BinaryIO

import torch
from torch import Tensor

CHUNK = 64 * 2**20  # bytes that are copied off the device, or made contiguous, at a time
_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip


def write_tensors(
    file: BinaryIO,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    whole: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> None:
    """Write `tensors` into an open binary file in the safetensors format.

    Besides the tensors themselves, which may be on any device, memory holds at most a copy of one tensor, or 64 MiB of
    it if it is contiguous. whole: called on each tensor just before it is written; returns a tensor of the same shape
    and dtype, such as a gathered shard. Tensors that share memory are written once per name. Raises TypeError for a
    dtype that the format does not support.
    """
    names = order(tensors)
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in _NAMES:
            raise TypeError(f"{name} has the dtype {tensor.dtype}, which safetensors files do not support")
        begin, end = end, end + math.prod(tensor.shape) * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors start at a multiple of 8
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        flat = whole(tensors[name].detach()).reshape(-1)
        for part in flat.split(max(1, CHUNK // flat.element_size())) if flat.numel() else ():
            file.write(memoryview(part.cpu().view(torch.uint8).numpy()))


def order(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names in the order in which to write them: wider dtypes first, so that all tensors are aligned."""
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
