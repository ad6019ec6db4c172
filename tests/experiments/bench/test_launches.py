"""Launches are counted as CUDA launches them, part by part; the captured AdaLoRA step keeps its aims."""

import json
import sys

import pytest
import torch

from experiments.bench import launches
from experiments.bench.launches import LaunchCounter, bench


def counted(work):
    counter = LaunchCounter()
    with counter:
        work()
    return counter.found.total()


def fused_step(n):
    parameters = [torch.nn.Parameter(torch.ones(3)) for _ in range(n)]
    for p in parameters:
        p.grad = torch.ones(3)
    optimizer = torch.optim.AdamW(parameters, fused=True)
    optimizer.step()  # makes its state
    return optimizer.step


X, LIST = torch.ones(2, 3), [torch.ones(3) for _ in range(111)]


@pytest.mark.parametrize(
    ("kernels", "work"),
    [
        (0, lambda: torch.empty(6).view(2, 3).t()[1:]),
        (1, lambda: X.t().reshape(-1)),  # a copy
        (2, lambda: (X @ X.t()).relu_()),
        (1, lambda: torch._foreach_mul_(LIST[:110], 2.0)),
        (2, lambda: torch._foreach_mul_(LIST, 2.0)),
        (2, lambda: torch._foreach_copy_(LIST[:65], LIST[:65])),
        (2, fused_step(36)),  # the step counters, and AdamW
        (3, fused_step(37)),
    ],
)
def test_an_operation_counts_as_many_launches_as_cuda_needs(kernels, work):
    assert counted(work) == kernels


def test_the_innermost_marked_function_owns_a_launch():
    class Work:
        def outer(self):
            X + 1
            self.inner()
            X + 1

        def inner(self):
            X + 1

    work = Work()
    found = launches.count(lambda: (work.outer(), X + 1), [("outer", work, "outer"), ("inner", work, "inner")])
    assert found == {"outer": 2, "inner": 1, "feed": 1}
    assert work.outer.__name__ == "outer"  # nothing stays replaced


@pytest.mark.parametrize(
    ("kind", "modules", "dtype", "autocast"),
    [
        ("llama", 7, torch.bfloat16, None),
        pytest.param("bert", 6, torch.float32, torch.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_another_block_adds_two_products_a_module_forwards_and_four_backwards(
    kind, modules, dtype, autocast, monkeypatch
):
    """In the captured step; the controller's launches do not depend on the number of blocks."""
    names = ("floor", "adalora", "lora+captured", "adalora+captured")
    monkeypatch.setattr(launches, "STEPS", names)
    one, two = (bench(kind, layers, dtype, autocast) for layers in (1, 2))
    for found in (one, two):
        assert set(found["parts"]) == set(names)
        for name, parts in found["parts"].items():
            assert sum(parts.values()) == found["launches"][name] >= found["launches"]["floor"] > 0
        assert found["launches"]["lora+captured"] < found["launches"]["adalora+captured"] < found["launches"]["adalora"]
    for name in ("lora+captured", "adalora+captured"):
        more = {part: two["parts"][name][part] - n for part, n in one["parts"][name].items()}
        assert more["adapters forward"] == 2 * modules
        assert more["adapters backward"] == 4 * modules
        assert more["base forward"] > 0
        assert more["base backward"] > 0
        assert max(more[part] for part in more.keys() & {"feed", "penalty", "observe", "allocate"}) <= 1


@pytest.mark.slow
def test_adalora_captured_keeps_its_aims_at_22_layers():
    pytest.importorskip("peft")
    ratios = bench(*launches.MODELS["decoder"])["ratios"]
    assert ratios["adalora+captured / peft_lora"] <= 0.75
    assert ratios["adalora+captured / lora+captured"] <= 1.06


@pytest.mark.slow
def test_the_command_writes_counts_within_a_seventh_of_a_profilers(tmp_path, monkeypatch):
    pytest.importorskip("peft")
    target = tmp_path / "launches.json"
    monkeypatch.setattr(sys, "argv", ["launches.py", "--json", str(target)])
    assert launches.main() == 0
    found = json.loads(target.read_text())
    assert set(found["models"]) == set(launches.MODELS)
    for value in found["profiled"].values():
        assert 6 / 7 < value["ratio"] < 1
