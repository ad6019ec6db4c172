import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import adarank
from adarank.bank import Bank
from adarank.penalties import orthogonality, orthogonality_value


@pytest.fixture
def adapters(net):
    net = net.double()
    names = [f"layers.{i}.{n}" for i in range(3) for n in ("up", "down")]
    return adarank.adapt(net, rank=dict(zip(names, (2, 3, 2, 5, 4, 3), strict=True)), targets=names)


def written_out(adapters, gamma, squared, frozen=False):
    rows = [f[a.mask] if frozen else f for a in adapters.values() for f in (a.Q, a.P)]
    norms = [torch.linalg.norm(f @ f.T - torch.eye(len(f), dtype=f.dtype)) for f in rows]
    if squared:
        return gamma * sum(n**2 for n in norms)
    return gamma / len(norms) * sum(norms)


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("grad_scale", [None, 8.0, torch.tensor(8.0)])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_closed_form_is_autograd_s_gradient(adapters, squared, grad_scale, frozen):
    bank = Bank(adapters)
    bank.frozen = frozen
    for i, adapter in enumerate(adapters.values()):
        adapter.mask[i % adapter.rank] = False  # another one in each module
    value = written_out(adapters, 0.3, squared, frozen)
    factors = [f for a in adapters.values() for f in (a.Q, a.P)]
    expected = torch.autograd.grad(value, factors)
    torch.testing.assert_close(orthogonality_value(bank, 0.3, squared), value.detach())
    for f in factors:
        f.grad = torch.ones_like(f)
    bank.sync_views()
    orthogonality(0.3).add(bank, grad_scale, squared)
    for f, g in zip(factors, expected, strict=True):
        torch.testing.assert_close(f.grad, 1 + float(grad_scale or 1) * g)
    assert all(not a.lam.grad.any() for a in adapters.values())


def test_orthonormal_rows_have_no_gradient_and_no_nan(adapters):
    with torch.no_grad():
        for a in adapters.values():
            for f in (a.Q, a.P):
                f.copy_(torch.eye(*f.shape))
    bank = Bank(adapters)
    orthogonality(0.3).add(bank, None, False)
    assert torch.equal(bank.grad, torch.zeros_like(bank.grad))


def test_modules_of_rank_0_and_of_unlike_ranks_after_compaction(net, adapters):
    """In fp32, against autograd in fp64."""
    for adapter, kept in zip(adapters.values(), (0, 3, 1, 5, 2, 0), strict=True):
        adapter.mask[kept:] = False
    adarank.compact(net)
    factors = [f for a in adapters.values() for f in (a.Q, a.P) if a.rank]
    value = written_out(
        {name: a for name, a in adapters.items() if a.rank}, 0.3 * 4 / 6, False
    )  # of 12 factors, 8 are left
    expected = torch.autograd.grad(value, factors)
    bank = Bank({name: a.float() for name, a in adapters.items()})
    bank.sync_views()
    orthogonality(0.3).add(bank, None, False)
    torch.testing.assert_close(orthogonality_value(bank, 0.3).double(), value.detach(), rtol=1e-6, atol=0)
    for f, g in zip(factors, expected, strict=True):
        torch.testing.assert_close(f.grad.double(), g, rtol=1e-6, atol=1e-6)


class Operations(TorchDispatchMode):
    """Counts the operations that do more than view."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


def test_unlike_ranks_need_no_more_operations_than_two_unlike_ones(adapters):
    """The number of operations depends on the row lengths, not on how many ranks there are."""
    bank = Bank(adapters)
    with Operations() as many:
        orthogonality().add(bank, None, False)
    assert many.count == 9 * len(bank.blocks) == 36


def test_gamma_0_adds_nothing_and_a_negative_one_is_refused(adapters):
    bank = Bank(adapters)
    orthogonality(0.0).add(bank, None, False)
    assert not bank.grad.any()
    with pytest.raises(adarank.SettingError, match=r"penalty\.gamma must be at least 0 \(got -1\)"):
        orthogonality(-1)


def test_each_module_shrinks_by_its_own_learning_rate():
    """The proximal step took the first module's for all of them."""
    adapters = adarank.adapt(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), rank=2, targets=["0", "1"])
    groups = [
        {"params": [*adapters[name].parameters(recurse=False)], "lr": lr} for name, lr in (("0", 0.1), ("1", 0.01))
    ]
    for a in adapters.values():
        nn.init.ones_(a.lam)
    controller = adarank.RankController(adapters, penalty=adarank.penalties.l1_proximal(sparsity=0.5))
    optimizer = torch.optim.SGD(groups)
    controller.attach(optimizer)
    sum(a.lam.sum() * 0 for a in adapters.values()).backward()
    controller.after_backward()
    optimizer.step()
    torch.testing.assert_close(adapters["0"].lam.detach(), torch.full((2,), 0.95))
    torch.testing.assert_close(adapters["1"].lam.detach(), torch.full((2,), 0.995))
