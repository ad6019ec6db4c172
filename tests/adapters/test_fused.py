"""The hand-written backward against plain autograd."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from adarank.adapters.fused import lowrank_linear

SIZES = st.integers(1, 7)


def reference(x, weight, bias, Q, lam, P, scale, dropped=None):
    source = x if dropped is None else dropped
    return F.linear(x, weight, bias) + ((source @ Q.t()) * (lam * scale)) @ P


def tensors(seed, batch, d_in, d_out, rank, dtype):
    draw = torch.Generator().manual_seed(seed)
    make = lambda *shape: torch.randn(*shape, generator=draw, dtype=dtype)  # noqa: E731
    return make(*batch, d_in), make(d_out, d_in), make(d_out), make(rank, d_in), make(rank), make(rank, d_out)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    batch=st.lists(SIZES, min_size=0, max_size=3),
    d_in=SIZES,
    d_out=SIZES,
    rank=st.integers(0, 5),
    with_bias=st.booleans(),
    with_dropout=st.booleans(),
    needs_x=st.booleans(),
)
def test_forward_and_gradients_equal_autograd(seed, batch, d_in, d_out, rank, with_bias, with_dropout, needs_x):
    x, weight, bias, *factors = tensors(seed, batch, d_in, d_out, rank, torch.float64)
    bias = bias if with_bias else None
    keep = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) > 0.3
    found = []
    for function in (lowrank_linear, reference):
        leaf = x.clone().requires_grad_(needs_x)
        leaves = [t.clone().requires_grad_() for t in factors]
        dropped = leaf * keep / 0.7 if with_dropout else None
        out = function(leaf, weight, bias, *leaves, 1.7, dropped)
        out.square().sum().backward()
        found.append([out.detach(), *(t.grad for t in (leaf, *leaves) if t.requires_grad)])
    for ours, theirs in zip(*found, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_gradcheck():
    x, weight, bias, *factors = tensors(0, (4,), 5, 3, 2, torch.float64)
    leaves = [t.requires_grad_() for t in (x, *factors)]
    assert torch.autograd.gradcheck(lambda x, Q, lam, P: lowrank_linear(x, weight, bias, Q, lam, P, 2.0), leaves)


@pytest.mark.parametrize("frozen", [("lam",), ("Q", "lam"), ("P",)])
def test_factors_that_do_not_learn_get_no_gradient(frozen):
    x, weight, bias, *factors = tensors(1, (4,), 5, 3, 2, torch.float32)
    named = dict(zip(("Q", "lam", "P"), factors, strict=True))
    for name, t in named.items():
        t.requires_grad_(name not in frozen)
    lowrank_linear(x, weight, bias, *named.values(), 2.0).sum().backward()
    assert {name for name, t in named.items() if t.grad is None} == set(frozen)


@pytest.mark.usefixtures("safe_bf16")
@pytest.mark.parametrize("with_dropout", [False, True])
def test_bf16_autocast_gives_fp32_gradients_near_the_exact_ones(with_dropout):
    x, weight, bias, *factors = tensors(2, (6,), 16, 8, 4, torch.float32)
    exact = [t.clone().requires_grad_() for t in factors]
    half = [t.clone().requires_grad_() for t in factors]
    dropped = torch.where(x > 0, 2 * x, 0.0) if with_dropout else None
    reference(x, weight, bias, *exact, 0.5, dropped).square().mean().backward()
    with torch.autocast("cpu", torch.bfloat16):
        out = lowrank_linear(x, weight, bias, *half, 0.5, dropped)
        assert out.dtype == torch.bfloat16
        loss = out.float().square().mean()
    loss.backward()
    for ours, theirs in zip(half, exact, strict=True):
        assert ours.grad.dtype == torch.float32
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0.1, atol=0.05 * theirs.grad.abs().max().item())


def test_it_keeps_only_the_input_and_h_for_the_backward_pass():
    x, weight, bias, *factors = tensors(3, (32,), 64, 64, 4, torch.float32)
    leaves = [t.requires_grad_() for t in (x, *factors)]
    held = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t):
        lowrank_linear(leaves[0], weight, bias, *leaves[1:], 1.0)
    parameters = {t.data_ptr() for t in (weight, *leaves)}
    extra = [t for t in held if t.data_ptr() not in parameters]
    assert sum(t.numel() for t in extra) == 32 * 4  # h [r, n]
