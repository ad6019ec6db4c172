"""Scores of the factors alone: magnitude, contribution, spectral entropy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import adarank
from adarank.adapters.lowrank import to_singular
from adarank.bank import Bank
from adarank.scores import contribution, magnitude, spectral_entropy
from adarank.targets import find_targets
from tests.conftest import Net


def asked(score, bank):
    buffers = score.init(bank)
    score.observe(buffers, bank)
    return score.score(buffers, bank)


@pytest.fixture
def adapters(net):
    adapters = adarank.adapt(net.double(), rank=3)
    for i, adapter in enumerate(adapters.values()):
        adapter.scale = 0.5 + i
        for part in ("Q", "lam", "P"):
            getattr(adapter, part).data.normal_()
    return adapters


def test_magnitude_is_the_absolute_lambda(adapters):
    expected = [abs(lam) for a in adapters.values() for lam in a.lam.tolist()]
    assert asked(magnitude(), Bank(adapters)).tolist() == expected


@pytest.mark.parametrize("kind", ["svd", "lora"])
def test_contribution_is_the_norm_of_a_triplet_s_own_weight_change(kind):
    torch.manual_seed(0)
    net = Net().double()
    adapters = adarank.adapt(
        net, kind, rank=dict(zip(find_targets(net, "all-linear"), (3, 2, 4, 1, 2, 3), strict=True))
    )
    for i, adapter in enumerate(adapters.values()):
        adapter.scale = 0.5 + i
        for part in ("Q", "P", *(["lam"] if kind == "svd" else [])):
            getattr(adapter, part).data.normal_()
    expected = [
        np.linalg.norm(a.scale * a.lam[i].item() * np.outer(a.P[i].detach().numpy(), a.Q[i].detach().numpy()))
        for a in adapters.values()
        for i in range(a.rank)
    ]
    found = asked(contribution(), Bank(adapters))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", ["svd", "lora"])
def test_in_the_singular_basis_contribution_is_the_singular_values(kind):
    torch.manual_seed(0)
    adapters = adarank.adapt(Net().double(), kind, rank=3)
    expected = []
    for adapter in adapters.values():
        adapter.P.data.normal_()
        if kind == "svd":
            adapter.lam.data.normal_()
        expected += torch.linalg.svdvals(adapter.delta().detach())[:3].tolist()
        with torch.no_grad():
            to_singular(adapter)
    found = asked(contribution(), Bank(adapters))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def entropy(lam):
    """FlexLoRA's compute_matrix_importance, written out."""
    energy = [x * x for x in lam]
    p = [e / sum(energy) for e in energy]
    return -sum(x * math.log(x) for x in p) / math.log(len(p)), p


def test_spectral_entropy_is_the_paper_s_importance_shared_out_by_energy(adapters):
    found = asked(spectral_entropy(), Bank(adapters)).split(3)
    for adapter, scores in zip(adapters.values(), found, strict=True):
        H, p = entropy(adapter.lam.tolist())
        assert sum(scores.tolist()) == pytest.approx(H, rel=1e-12)
        assert scores.tolist() == pytest.approx([x * H for x in p], rel=1e-12)


@given(st.lists(st.floats(1e-3, 1e3) | st.just(0.0), min_size=12, max_size=12), st.floats(1e-12, 1e12))
def test_entropy_s_laws(values, factor):
    """Between 0 and 1; blind to scale and to what λ = 0 holds; inside a module in the order of |λ|."""
    adapters = adarank.adapt(Net(2).double(), rank=3)
    bank = Bank(adapters)
    lam = torch.tensor(values, dtype=torch.float64)
    bank.lam.copy_(lam)
    found = asked(spectral_entropy(), bank)
    bank.lam.copy_(-lam * factor)
    torch.testing.assert_close(asked(spectral_entropy(), bank), found, rtol=1e-9, atol=1e-12)
    for scores, lams in zip(found.split(3), lam.split(3), strict=True):
        total = scores.sum().item()
        assert 0 <= total <= 1 + 1e-12
        alive = [x for x in lams.tolist() if x]
        assert total == pytest.approx(entropy(alive)[0] if len(alive) > 1 else 0.0, rel=1e-9, abs=1e-9)
        order = torch.argsort(lams)
        assert (scores[order].diff() >= -1e-15).all()


def test_equal_singular_values_have_entropy_one_however_small():
    bank = Bank(adarank.adapt(Net(), rank=3))
    bank.lam.fill_(1e-30)  # λ² is zero in fp32
    assert asked(spectral_entropy(), bank).tolist() == pytest.approx([1 / 3] * bank.triplets)


@pytest.mark.parametrize("make", [magnitude, spectral_entropy])
def test_where_lambda_is_constant_it_says_so(make):
    bank = Bank(adarank.adapt(Net(), "lora", rank=2))
    with pytest.raises(adarank.SettingError, match=rf"score={make.__name__} needs adapters whose λ is trained"):
        make().init(bank)
