"""The metrics of ΔW against dense NumPy: loops, full decompositions, the equations written out."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import adarank
from adarank.adapters.lowrank import LowRank
from adarank.adapters.spectrum import effective_rank, stable_rank
from adarank.probe.weight_change import (
    amplification,
    change_between,
    change_of_adapter,
    intruder_dimensions,
    module_metrics,
    orthogonality_error,
    subspace_similarity,
)

D_IN, D_OUT, RANK = 9, 7, 4


def adapter_of(kind="svd", rank=RANK, seed=0):
    torch.manual_seed(seed)
    adapter = LowRank(nn.Linear(D_IN, D_OUT).double(), kind, rank, scale=1.5)
    with torch.no_grad():
        for factor in (adapter.Q, adapter.P, *([adapter.lam] if kind == "svd" else [])):
            factor.normal_()
    return adapter


def dense(adapter):
    """ΔW, a triplet at a time."""
    total = np.zeros((D_OUT, D_IN))
    for i in range(adapter.rank):
        if adapter.mask[i]:
            p, q, lam = (tensor[i].detach().numpy() for tensor in (adapter.P, adapter.Q, adapter.lam))
            total += adapter.scale * lam * np.outer(p, q)
    return total


def random(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("kind", ["svd", "lora"])
def test_the_change_of_an_adapter_is_the_dense_one_s_decomposition(kind):
    adapter = adapter_of(kind)
    adapter.mask[1] = False
    change = change_of_adapter(adapter)
    expected = dense(adapter)
    assert ((change.U * change.sigma) @ change.V.t()).numpy() == pytest.approx(expected, abs=1e-12)
    values = np.linalg.svd(expected, compute_uv=False)[:RANK]
    assert change.sigma.numpy() == pytest.approx(values, abs=1e-12)
    for basis in (change.U, change.V):
        assert (basis.t() @ basis).numpy() == pytest.approx(np.eye(RANK), abs=1e-12)


def test_a_start_that_was_taken_out_of_the_base_counts_as_its_absence():
    adapter = adapter_of("lora")
    original = adapter.base.weight.detach().clone()
    adapter.start_from(adapter.Q.detach() * 1.5, adapter.P.detach())  # the function is kept so far
    assert change_of_adapter(adapter).sigma.numpy() == pytest.approx(np.zeros(2 * RANK - 1), abs=1e-12)
    with torch.no_grad():
        adapter.Q.add_(0.1)
    after = adapter.base.weight.detach().numpy() + dense(adapter)
    change = change_of_adapter(adapter)
    assert ((change.U * change.sigma) @ change.V.t()).numpy() == pytest.approx(after - original.numpy(), abs=1e-12)


def test_the_change_of_a_dora_is_that_of_the_whole_weight():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(D_IN, D_OUT).double())
    original = model[0].weight.detach().clone()
    adapter = adarank.adapt(model, "dora", rank=2, init="pissa")["0"]
    with torch.no_grad():
        adapter.Q.normal_()
        adapter.magnitude.mul_(2.0)
    change = change_of_adapter(adapter)
    adarank.merge(model)
    after = (model[0].weight - original).detach().numpy()
    assert ((change.U * change.sigma) @ change.V.t()).numpy() == pytest.approx(after, abs=1e-12)


def test_the_change_between_two_weights():
    before, after = random(D_OUT, D_IN), random(D_OUT, D_IN, seed=1)
    change = change_between(before, after)
    assert len(change.sigma) == D_OUT
    assert ((change.U * change.sigma) @ change.V.t()).numpy() == pytest.approx((after - before).numpy(), abs=1e-12)


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12))
def test_effective_and_stable_rank(values):
    entropy = -sum(v / sum(values) * math.log(v / sum(values)) for v in values)
    sigma = torch.tensor(values, dtype=torch.float64)
    assert effective_rank(sigma) == pytest.approx(math.exp(entropy))
    assert stable_rank(sigma) == pytest.approx(sum(v * v for v in values) / max(values) ** 2)
    assert 1 - 1e-9 <= stable_rank(sigma) <= len(values) + 1e-9
    assert 1 - 1e-9 <= effective_rank(sigma) <= len(values) + 1e-9
    assert effective_rank(7 * sigma) == pytest.approx(effective_rank(sigma))


def test_of_equal_values_both_are_the_rank_and_of_nothing_zero():
    assert effective_rank(torch.tensor([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3)
    assert stable_rank(torch.tensor([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3)
    for nothing in (torch.zeros(3), torch.zeros(0)):
        assert effective_rank(nothing) == stable_rank(nothing) == 0.0


def orthonormal(d, k, seed):
    return torch.linalg.qr(random(d, k, seed=seed))[0]


def test_similarity_entry_by_entry():
    first, second = orthonormal(8, 3, 0), orthonormal(8, 5, 1)
    found = subspace_similarity(first, second).numpy()
    assert found.shape == (3, 5)
    for i in range(1, 4):
        for j in range(1, 6):
            product = first.numpy()[:, :i].T @ second.numpy()[:, :j]
            assert found[i - 1, j - 1] == pytest.approx((product**2).sum() / min(i, j))


def test_similarity_is_one_within_a_subspace_and_by_chance_what_is_said_of_it():
    basis = orthonormal(8, 5, 0)
    turned = basis[:, :3] @ orthonormal(3, 3, 2)
    assert subspace_similarity(turned, basis)[-1].tolist()[2:] == pytest.approx([1.0, 1.0, 1.0])
    assert subspace_similarity(basis[:, :2], basis[:, 2:]).abs().max() < 1e-12
    d, i, j = 40, 3, 6
    drawn = [
        subspace_similarity(orthonormal(d, i, s), orthonormal(d, j, 10_000 + s))[-1, -1].item() for s in range(400)
    ]
    assert np.mean(drawn) == pytest.approx(max(i, j) / d, rel=0.05)


def test_amplification_written_out():
    weight, change = random(D_OUT, D_IN), change_of_adapter(adapter_of())
    U, s, Vt = np.linalg.svd(dense(adapter_of()))
    for k, asked in ((2, 2), (RANK, 10)):
        inside = np.linalg.norm(U[:, :k].T @ weight.numpy() @ Vt[:k].T)
        found = amplification(weight, change, asked)
        assert found["directions"] == k
        assert found["factor"] == pytest.approx(np.linalg.norm(s[:k]) / inside)


def test_amplification_of_random_directions_is_the_chance_level():
    weight, d = random(30, 40), 400
    squares = [float((orthonormal(30, 3, s).t() @ weight @ orthonormal(40, 3, d + s)).square().sum()) for s in range(d)]
    found = amplification(weight, change_between(torch.zeros(30, 40), random(30, 40, seed=5)), 3)
    norm = found["random"] * float(weight.norm()) * 3 / math.sqrt(30 * 40)
    assert found["random"] == pytest.approx(norm / math.sqrt(np.mean(squares)), rel=0.05)
    assert amplification(weight, change_between(weight, weight), 3) is None


def test_a_planted_direction_intrudes_and_a_larger_old_one_does_not():
    U, V = orthonormal(7, 7, 0), orthonormal(9, 7, 1)
    weight = (U[:, :5] * torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])) @ V[:, :5].t()  # rank 5 of 7
    old = weight + 30 * torch.outer(U[:, 4], V[:, 4])
    assert intruder_dimensions(weight, old, top=5) == 0  # the same directions, in another order
    new = weight + 30 * torch.outer((U[:, :5].sum(1)) / math.sqrt(5), V[:, 5])  # cosine 1 / √5 with each
    assert intruder_dimensions(weight, new, top=1, epsilon=0.5) == 1
    assert intruder_dimensions(weight, new, top=1, epsilon=0.4) == 0


@pytest.mark.parametrize(("rows", "columns"), [(12, 8), (8, 12)])
@pytest.mark.parametrize("epsilon", [0.3, 0.5, 0.9])
def test_intruders_are_counted_by_hand(rows, columns, epsilon):
    before, after = random(rows, columns), random(rows, columns) + 4 * random(rows, columns, seed=3)
    old, new = (np.linalg.svd(w.numpy(), full_matrices=False)[0] for w in (before, after))
    count = 0
    for j in range(6):
        cosines = [abs(float(new[:, j] @ old[:, i])) for i in range(min(rows, columns))]
        count += max(cosines) < epsilon
    assert intruder_dimensions(before, after, top=6, epsilon=epsilon) == count
    assert intruder_dimensions(before, before, top=6, epsilon=epsilon) == 0


def test_the_orthogonality_error_is_the_distance_from_orthonormal_rows():
    rows = random(4, 9)
    gram = sum((float(rows[i] @ rows[j]) - (i == j)) ** 2 for i in range(4) for j in range(4))
    assert orthogonality_error(rows) == pytest.approx(math.sqrt(gram) / 2)
    assert orthogonality_error(orthonormal(9, 4, 0).t()) == pytest.approx(0.0, abs=1e-12)
    assert orthogonality_error(torch.zeros(4, 9)) == pytest.approx(1.0)
    assert orthogonality_error(torch.zeros(0, 9)) == 0.0


def test_a_module_s_metrics_hold_together():
    weight, change = random(D_OUT, D_IN), change_of_adapter(adapter_of())
    found = module_metrics(weight, change, 2)
    assert found["sides"] == [D_OUT, D_IN]
    assert found["rank"] == len(found["singular_values"]) == RANK
    assert found["norm"] == pytest.approx(np.linalg.norm(dense(adapter_of())))
    assert found["amplification"]["directions"] == 2
    nothing = module_metrics(weight, change_between(weight, weight), 2)
    assert (nothing["norm"], nothing["effective_rank"], nothing["amplification"], nothing["intruders"]) == (
        0,
        0,
        None,
        0,
    )
