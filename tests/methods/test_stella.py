"""StelLA (arXiv 2510.01938) against its algorithm written out: columns, singular value decompositions, one module at a
time."""

import math
from functools import partial

import pytest
import torch

import adarank
from adarank.penalties import inverse_root, orthogonality_value
from tests.methods.two_layers import Two

LR, STEPS, WIDTH = 0.05, 12, 9  # 9 is the most frequent side of Two's layers


def setup(rank=3, width=None, **controls):
    torch.manual_seed(2)
    net = Two()
    adapters = adarank.adapt(net, "svd", rank=rank, targets=["first", "second"], init="orthonormal")
    controller = adarank.RankController(adapters, penalty=adarank.penalties.stiefel(width), **controls)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=LR, weight_decay=0.0)
    controller.attach(optimizer)
    return net, adapters, controller, optimizer


def data():
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(16, d, generator=draw, dtype=torch.float64) for d in (7, 6)]


def step(net, controller, optimizer):
    x, y = data()
    (net(x) - y).square().mean().backward()
    controller.after_backward()
    optimizer.step()
    optimizer.zero_grad()


class Written:
    """Factors as the paper has them, U [d_out, r], S [r], V [d_in, r], with AdamW's moments by hand."""

    def __init__(self, adapters, width):
        self.bases, self.width = [(a.base.weight, a.base.bias, a.scale) for a in adapters.values()], width
        self.weights = [w.detach().clone() for a in adapters.values() for w in (a.P.t(), a.lam, a.Q.t())]
        self.moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in self.weights]
        self.t = 0

    def step(self):
        x, y = data()
        leaves = [w.clone().requires_grad_(True) for w in self.weights]
        h = x
        for i, (W, c, s) in enumerate(self.bases):
            U, S, V = leaves[3 * i : 3 * i + 3]
            h = h @ (W + s * U @ torch.diag(S) @ V.t()).t() + c
            h = torch.tanh(h) if i == 0 else h
        gradients = torch.autograd.grad((h - y).square().mean(), leaves)
        self.t += 1
        for i, (X, g) in enumerate(zip(list(self.weights), gradients, strict=True)):
            if X.ndim == 2:
                g = g - X @ g.t() @ X
            m, v = self.moments[i]
            m.mul_(0.9).add_(0.1 * g)
            v.mul_(0.999).add_(0.001 * g * g)
            change = -LR * (m / (1 - 0.9**self.t)) / ((v / (1 - 0.999**self.t)).sqrt() + 1e-8)
            if X.ndim == 1:
                self.weights[i] = X + change
                continue
            change = change / math.sqrt(len(X) / self.width)
            inner = X.t() @ change
            U, _, Vt = torch.linalg.svd(X + change - X @ (inner + inner.t()) / 2, full_matrices=False)
            self.weights[i] = U @ Vt


@pytest.mark.parametrize(("rank", "width"), [(3, None), (3, 4), ({"first": 3, "second": 2}, None)])
def test_twelve_steps_are_the_written_out_algorithm_s(rank, width):
    net, adapters, controller, optimizer = setup(rank, width)
    written = Written(adapters, width or WIDTH)
    for _ in range(STEPS):
        step(net, controller, optimizer)
        written.step()
        ours = [w for a in adapters.values() for w in (a.P.t(), a.lam, a.Q.t())]
        for a, b in zip(ours, written.weights, strict=True):
            torch.testing.assert_close(a.detach(), b, rtol=1e-9, atol=1e-11)
    assert orthogonality_value(controller.bank) < 1e-12


def test_it_starts_orthonormal_at_lambda_one_or_at_the_base():
    _, adapters, *_ = setup()
    for a in adapters.values():
        for factor in (a.Q, a.P):
            torch.testing.assert_close(factor @ factor.t(), torch.eye(3, dtype=torch.float64))
        assert a.lam.eq(1).all()
        assert a.start() is None, "the base stays"
    net = Two()
    for a in adarank.adapt(net, "svd", rank=2, targets=["first"], init=adarank.inits.orthonormal(lam=0.0)).values():
        assert a.delta().eq(0).all()


@pytest.mark.parametrize("name", sorted(set(adarank.allocators.__all__) - {"nonzero"}))
def test_it_crosses_every_allocator(name):
    """All rows stay orthonormal, those of pruned triplets, too; where these are frozen, those of the active ones."""
    held, growing = 4, name in ("grow", "one_by_one", "prune_expand")
    start = {"grow": 1, "one_by_one": 1, "prune_expand": 2}.get(name, held)
    sides = [16, 15]
    cost = [d + 1 for d in sides] if name == "by_cost" else [1, 1]
    kind = "growing" if name in ("grow", "one_by_one") else "constant" if name == "prune_expand" else "cubic"
    schedule = partial(getattr(adarank.schedules, kind), t_i=1, t_f=2, total=STEPS, interval=2)
    net, adapters, controller, optimizer = setup(
        rank=held,
        score=adarank.scores.adalora(),
        allocator=getattr(adarank.allocators, name)(),
        schedule=schedule(start * sum(cost), 2 * sum(cost)),
        pruned_triplets="frozen" if growing else "trainable",
        unit="parameters" if name == "by_cost" else "triplets",
        compaction="progressive" if name == "global_top" else "off",
        compact_after=1,
    )
    for _ in range(STEPS):
        step(net, controller, optimizer)
    step(net, controller, optimizer)  # triplets that were activated last have been retracted
    assert controller.is_settled
    for a in adapters.values():
        for factor in (a.Q, a.P):
            rows = factor[a.mask] if growing else factor
            torch.testing.assert_close(rows @ rows.t(), torch.eye(len(rows), dtype=rows.dtype))


def test_weight_decay_leaves_the_factors_alone():
    """The authors exclude U and V from decay; here the tangent projection removes it."""
    found = []
    for decay in (0.0, 0.3):
        net, adapters, controller, optimizer = setup()
        for group in optimizer.param_groups:
            group["weight_decay"] = decay
        step(net, controller, optimizer)
        found.append(adapters["first"].Q.detach().clone())
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_inverse_root_is_that_of_the_eigenvalues(dtype):
    torch.manual_seed(0)
    rows = torch.randn(5, 7, 20, dtype=dtype)
    rows[2, 3:] = 0  # padding
    rows[3] *= 100
    gram = rows @ rows.mT
    values, vectors = torch.linalg.eigh(gram)
    roots = torch.where(values > 1e-3, values.clamp_min(1e-9).rsqrt(), 0.0)
    expected = (vectors * roots.unsqueeze(1)) @ vectors.mT @ rows
    tolerance = 1e-4 if dtype is torch.float32 else 1e-10
    torch.testing.assert_close(inverse_root(gram) @ rows, expected, rtol=tolerance, atol=tolerance)


def test_bad_settings():
    with pytest.raises(adarank.SettingError, match=r"penalty\.width must be a whole number .* \(got 0\)"):
        adarank.penalties.stiefel(0)
    with pytest.raises(adarank.SettingError, match=r"init\.lam must be a number \(got nan\)"):
        adarank.inits.orthonormal(float("nan"))
    with pytest.raises(adarank.SettingError, match="adapter=lora does not train it"):
        adarank.adapt(Two(), "lora", rank=2, targets=["first"], init="orthonormal")
