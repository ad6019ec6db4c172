from copy import deepcopy

import pytest
import torch
from torch import nn

import adarank
from adarank.bank import Bank


def loss(net, seed=0):
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(seed))
    return net(x.to(net.head.weight)).square().mean()


@pytest.fixture
def adapters(net):
    """Different ranks, so that shapes differ in both dimensions."""
    names = [f"layers.{i}.{n}" for i in range(3) for n in ("up", "down")]
    found = adarank.adapt(net, rank=dict(zip(names, (2, 3, 2, 5, 4, 3), strict=True)), targets=names)
    with torch.no_grad():
        for adapter in found.values():
            adapter.lam.copy_(torch.randn(adapter.rank))
    return found


def parameters(adapters):
    return [p for a in adapters.values() for p in (a.Q, a.lam, a.P)]


def in_bank(bank, tensor, flat):
    start = flat.data_ptr()
    return start <= tensor.data_ptr() < start + flat.numel() * flat.element_size()


def test_values_and_the_model_s_function_do_not_change(net, adapters):
    before, values = loss(net), [p.clone() for p in parameters(adapters)]
    names = [n for n, _ in net.named_parameters()]
    bank = Bank(adapters)
    assert torch.equal(loss(net), before)
    assert all(torch.equal(a, b) for a, b in zip(parameters(adapters), values, strict=True))
    assert [n for n, _ in net.named_parameters()] == names
    assert all(isinstance(p, nn.Parameter) and in_bank(bank, p, bank.weight) for p in parameters(adapters))
    assert bank.weight.numel() == sum(p.numel() for p in parameters(adapters))
    assert bank.triplets == 19
    assert torch.equal(bank.lam, torch.cat([a.lam for a in adapters.values()]))
    assert bank.module.tolist() == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5]
    assert bank.cost.tolist() == [33] * 19


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_synced_gradients_are_the_true_ones_in_both_forms_of_zero_grad(net, adapters, set_to_none, accumulation):
    plain = deepcopy(net)
    bank = Bank(adapters)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        for model in (net, plain):
            for part in range(accumulation):
                loss(model, part).backward()
        bank.sync_views()
        bank.sync_views()  # idempotent
        for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
            if ours.requires_grad:
                assert in_bank(bank, ours.grad, bank.grad)
                torch.testing.assert_close(ours.grad, theirs.grad)
        with torch.no_grad():
            for p in plain.parameters():
                if p.grad is not None:
                    p -= 0.1 * p.grad
                    p.grad = None
        optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)


def test_a_parameter_without_gradient_gets_a_zero_one(net, adapters):
    bank = Bank(adapters)
    loss(net).backward()
    bank.sync_views()
    net.zero_grad()
    (net.layers[2].up.Q.sum() * 2).backward()
    bank.sync_views()
    assert adapters["layers.0.up"].Q.grad.abs().sum() == 0
    assert bank.grad.sum() == 2 * adapters["layers.2.up"].Q.numel()


def test_weights_that_moved_become_views_again(net, adapters):
    bank = Bank(adapters)
    net.to(torch.float64)
    loss(net).backward()
    bank.sync_views()
    assert bank.weight.dtype == torch.float64
    assert all(in_bank(bank, p, bank.weight) and in_bank(bank, p.grad, bank.grad) for p in parameters(adapters))
    adapters["layers.0.up"].Q.data = torch.ones(2, 12, dtype=torch.float64)
    bank.sync_views()
    assert in_bank(bank, adapters["layers.0.up"].Q, bank.weight)
    assert torch.equal(adapters["layers.0.up"].Q, torch.ones(2, 12, dtype=torch.float64))


def test_gradients_that_moved_become_views_again(net, adapters):
    """As a model that goes to another device and comes back with its gradients."""
    bank = Bank(adapters)
    bank.sync_views()
    net._apply(lambda tensor: tensor.clone())
    net(torch.randn(5, 8)).sum().backward()
    expected = [p.grad.clone() for p in parameters(adapters)]
    bank.sync_views()
    for parameter, gradient in zip(parameters(adapters), expected, strict=True):
        assert torch.equal(parameter.grad, gradient)
    bank.grad.fill_(7.0)
    assert all((p.grad == 7).all() for p in parameters(adapters))


def test_a_copied_model_trains_apart_from_the_original(net, adapters):
    bank = Bank(adapters)
    copy = deepcopy(net)
    with torch.no_grad():
        copy.layers[0].up.Q.fill_(7)
    assert not (bank.weight == 7).any()


def test_state_dict_round_trip_keeps_every_tensor(net, adapters):
    bank = Bank(adapters)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    bank.weight.zero_()
    net.load_state_dict(state)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert all(in_bank(bank, p, bank.weight) for p in parameters(adapters))


def test_triplet_sums_are_lam_plus_the_rows_means(net, adapters):
    bank = Bank(adapters)
    values = bank.weight.square()
    expected = [
        a.lam[i] ** 2 + a.Q[i].square().mean() + a.P[i].square().mean()
        for a in adapters.values()
        for i in range(a.rank)
    ]
    torch.testing.assert_close(bank.triplet_sums(values), torch.stack(expected))


@pytest.mark.parametrize("ranks", [(2, 3, 2, 5, 4, 3), (4, 0, 1, 2, 0, 2), (3, 3, 3, 3, 3, 3), (0, 2, 0, 2, 0, 2)])
def test_every_row_lies_once_in_the_stacks_and_knows_its_triplet(net, ranks):
    """One stack for each row length of Q and P, as long as its largest rank; the rest of it is zero."""
    names = [f"layers.{i}.{n}" for i in range(3) for n in ("up", "down")]
    adapters = adarank.adapt(net, rank=max(ranks), targets=names)
    for adapter, rank in zip(adapters.values(), ranks, strict=True):
        adapter.mask[rank:] = False
        with torch.no_grad():
            adapter.P.normal_()
    adarank.compact(net)
    bank = Bank(adapters)
    triplets = [(a, i) for a in adapters.values() for i in range(a.rank)]
    shapes = {(part, getattr(a, part).shape[1]) for a in adapters.values() for part in ("Q", "P") if a.rank}
    assert len(bank.blocks) == len(shapes)
    seen = []
    for block in bank.blocks:
        assert in_bank(bank, block.weight, bank.weight)
        assert in_bank(bank, block.grad, bank.grad)
        stack = block.stack()
        assert stack.shape[:2] == block.triplets.shape
        filled = block.identity.expand(len(stack), -1, -1).diagonal(dim1=1, dim2=2).bool()
        assert (stack[~filled] == 0).all()
        assert stack.shape[1] == filled.sum(1).max()
        for row, number in zip(stack[filled], block.triplets[filled].tolist(), strict=True):
            adapter, i = triplets[number]
            found = [part for part in ("Q", "P") if torch.equal(row, getattr(adapter, part)[i])]
            assert len(found) == 1
            seen.append((number, *found))
    assert sorted(seen) == sorted((number, part) for number in range(bank.triplets) for part in ("P", "Q"))


def test_equal_ranks_are_stacked_without_a_copy(net):
    bank = Bank(adarank.adapt(net, rank=3))
    assert all(block.positions is None and in_bank(bank, block.stack(), bank.weight) for block in bank.blocks)


def test_adapters_of_unlike_dtypes_are_refused(net, adapters):
    adapters["layers.1.up"].double()
    with pytest.raises(adarank.SettingError, match=r"all adapters must have one device and one dtype \(got .*float64"):
        Bank(adapters)


def test_every_triplet_has_the_scale_of_its_adapter(net, adapters):
    for i, adapter in enumerate(adapters.values()):
        adapter.scale = i + 0.5
    bank = Bank(adapters)
    assert torch.equal(bank.scale, bank.module + 0.5)


def test_zero_pruned_survives_nan(net, adapters):
    bank = Bank(adapters)
    bank.mask[0] = False
    bank.lam[0] = torch.nan
    bank.zero_pruned()
    assert adapters["layers.0.up"].lam[0] == 0
    assert not adapters["layers.0.up"].mask[0]


def test_lora_s_constant_lam_lies_in_the_bank_too(net):
    adapters = adarank.adapt(net, "lora", rank=2)
    bank = Bank(adapters)
    loss(net).backward()
    bank.sync_views()
    assert torch.equal(bank.lam, torch.ones(12))
    assert adapters["layers.0.up"].P.grad.abs().sum() > 0


def test_no_adapters_are_refused():
    with pytest.raises(adarank.SettingError, match="adapters must not be empty"):
        Bank({})


@pytest.mark.parametrize("kind", ["svd", "lora"])
def test_masks_and_constant_lams_that_moved_become_views_again(net, kind):
    adapters = adarank.adapt(net, kind, rank=2)
    bank = Bank(adapters)
    for dtype in (torch.float64, torch.float32):
        net.to(dtype)
        bank.sync_views()
        bank.mask.fill_(dtype == torch.float32)
        bank.lam.fill_(3.0)
        for adapter in adapters.values():
            assert adapter.mask.tolist() == [dtype == torch.float32] * 2
            assert torch.equal(adapter.lam, torch.full((2,), 3.0, dtype=dtype))
    for adapter in adapters.values():
        adapter.mask = torch.tensor([True, False])
    bank.sync_views()
    assert bank.mask.tolist() == [True, False] * 6


def test_replaced_parameters_are_noticed(net, adapters):
    bank = Bank(adapters)
    adapters["layers.0.up"].Q = nn.Parameter(torch.ones(2, 12))
    with pytest.raises(RuntimeError, match=r"pass the optimiser to adarank\.compact"):
        bank.sync_views()


def test_unflatten_and_flatten_are_inverses(net, adapters):
    bank = Bank(adapters)
    flat = torch.randn_like(bank.weight)
    pieces = bank.unflatten(flat)
    assert torch.equal(bank.flatten(pieces), flat)
    assert {e: p.shape for e, p in pieces.items()} == {
        (part, i): getattr(a, part).shape for i, a in enumerate(adapters.values()) for part in ("Q", "lam", "P")
    }


def test_adapters_on_several_devices_are_refused_in_a_sentence(adapters):
    adapters["layers.1.up"].to("meta")
    with pytest.raises(
        adarank.SettingError, match=r"one device .* \(got torch\.float32 on cpu, torch\.float32 on meta\)"
    ):
        Bank(adapters)
