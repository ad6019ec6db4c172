"""Safetensors files that are written tensor by tensor: safetensors itself reads them."""

import io
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load, load_file

from adarank.harness.device import peak_mib, reset_peak
from adarank.tensor_files import CHUNK, write_tensors

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


def written(tensors, **more):
    file = io.BytesIO()
    write_tensors(file, tensors, **more)
    return file.getvalue()


def same(one, other):
    as_bytes = (t.contiguous().reshape(-1).view(torch.uint8) for t in (one, other))
    return (one.shape, one.dtype) == (other.shape, other.dtype) and torch.equal(*as_bytes)


@given(
    st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)), max_size=6), st.integers(0, 9)
)
def test_safetensors_reads_what_was_written(kinds, seed):
    torch.manual_seed(seed)
    tensors = {f"t{i}.{seed}": (torch.rand(shape) * 2).to(dtype) for i, (dtype, shape) in enumerate(kinds)}
    found = load(written(tensors))
    assert found.keys() == tensors.keys()
    assert all(same(found[name], tensor) for name, tensor in tensors.items())


def test_views_shared_memory_and_metadata(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    tensors = {"t": base.t(), "row": base[1], "again": base[1], "scalar": torch.tensor(3.5), "mask": base[:, 0] > 2}
    with (tmp_path / "x.safetensors").open("wb") as file:
        write_tensors(file, tensors, {"outline": json.dumps({"é": 1})})
    found = load_file(tmp_path / "x.safetensors")
    assert all(same(found[name], tensor) for name, tensor in tensors.items())
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["outline"]) == {"é": 1}


def test_tensors_are_aligned_whatever_their_dtypes():
    data = written({"a": torch.ones(3, dtype=torch.bool), "b": torch.ones(3), "c": torch.ones(1, dtype=torch.float64)})
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    assert [header[name]["data_offsets"][0] for name in "cba"] == [0, 8, 20]


def test_each_tensor_is_put_together_just_before_it_is_written():
    made = []

    def whole(tensor):
        made.append(len(tensor))
        return torch.full(tensor.shape, 7.0)

    found = load(written({"a": torch.zeros(2), "b": torch.zeros(5)}, whole=whole))
    assert made == [2, 5]
    assert found["b"].tolist() == [7.0] * 5


def test_a_dtype_that_the_format_does_not_have():
    with pytest.raises(TypeError, match=r"^z has the dtype torch\.complex64, which safetensors files do not support"):
        written({"z": torch.zeros(2, dtype=torch.complex64)})


@pytest.mark.skipif(peak_mib(torch.device("cpu")) is None, reason="peak memory is measured on Linux")
def test_writing_holds_no_second_copy(tmp_path):
    cpu, mib = torch.device("cpu"), CHUNK / 2**20
    tensors = {str(i): torch.ones(40 * 2**20 // 4) for i in range(8)}  # 320 MiB
    tensors["big"] = torch.ones(160 * 2**20 // 2, dtype=torch.bfloat16)
    reset_peak(cpu)
    before = peak_mib(cpu)
    with (tmp_path / "x.safetensors").open("wb") as file:
        write_tensors(file, tensors)
    assert peak_mib(cpu) - before <= mib
    assert (tmp_path / "x.safetensors").stat().st_size > 480 * 2**20
