"""VeRA (arXiv 2310.11454) against PEFT's on the same projections, and against its equation written out."""

import copy
import pickle

import pytest
import torch
from torch import nn

import adarank
from adarank.adapters.layers import CONV1D
from adarank.commands.inspect import report
from tests.integrations.models import bert, gpt2

LAYERS = ("first", "second")


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(7, 9), nn.Linear(9, 6)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def adapted(rank=4, **options):
    torch.manual_seed(5)
    net = Two()
    base = copy.deepcopy(net)
    return base, net, adarank.adapt(net, "vera", rank=rank, targets=LAYERS, **options), torch.randn(5, 7)


def move(adapters):
    with torch.no_grad():
        for a in adapters.values():
            a.lam.normal_()
            a.b.normal_()


def test_it_starts_at_the_base_and_trains_two_vectors_per_module():
    base, net, adapters, x = adapted()
    torch.testing.assert_close(net(x), base(x))
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    assert trained == {f"{layer}.{part}" for layer in LAYERS for part in ("lam", "b")}
    counts = adarank.trainable_parameters(net)
    assert counts["trainable"] == counts["adapter"] == counts["kept"] == 2 * 4 + 9 + 6
    assert all(a.scale == 1.0 and a.lam.eq(0.1).all() and a.b.eq(0).all() for a in adapters.values())
    first, second = adapters.values()
    assert torch.equal(first.Q, second.Q[:, :7]), "one pair for all modules"
    assert torch.equal(first.P[:, :6], second.P)
    adapters["first"].mask[0] = False
    assert adarank.trainable_parameters(net)["kept"] == counts["kept"] - 1


def test_outputs_and_gradients_are_those_of_the_equation():
    base, net, adapters, x = adapted()
    move(adapters)

    def path(a, x):
        out = torch.zeros(len(x), a.out_features)
        for i in range(a.rank):
            out = out + (a.lam[i] * (x @ a.Q[i])).unsqueeze(1) * a.P[i]
        return a.b * out

    first, second = adapters.values()
    h = torch.tanh(base.first(x) + path(first, x))
    expected = base.second(h) + path(second, h)
    torch.testing.assert_close(net(x), expected)
    vectors = [p for a in adapters.values() for p in (a.lam, a.b)]
    ours = torch.autograd.grad(net(x).square().sum(), vectors)
    for a, b in zip(ours, torch.autograd.grad(expected.square().sum(), vectors), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", [bert, gpt2])
def test_three_steps_are_peft_s(build):
    from peft import VeraConfig, get_peft_model

    torch.manual_seed(0)
    model = build().eval()
    targets = ["query", "value", "intermediate.dense"] if build is bert else ["c_attn", "c_fc"]
    theirs = get_peft_model(
        copy.deepcopy(model), VeraConfig(r=5, target_modules=targets, vera_dropout=0.0, fan_in_fan_out=build is gpt2)
    ).eval()
    adapters = adarank.adapt(model, "vera", rank=5, targets=targets)
    assert all((a.layer is CONV1D) == (build is gpt2) for a in adapters.values())
    vera = theirs.base_model.vera_A["default"], theirs.base_model.vera_B["default"]
    for a in adapters.values():
        assert torch.equal(a.Q, vera[0][:, : a.in_features])
        assert torch.equal(a.P.t(), vera[1][: a.out_features])
    ids = torch.tensor([[2, 7, 9, 4], [5, 3, 8, 6]])
    for net in (model, theirs):
        optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.05)
        for _ in range(3):
            net(input_ids=ids).logits.square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    for name, a in adapters.items():
        layer = theirs.base_model.model.get_submodule(name)
        torch.testing.assert_close(a.lam, layer.vera_lambda_d["default"], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(a.b, layer.vera_lambda_b["default"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(model(input_ids=ids).logits, theirs(input_ids=ids).logits, rtol=1e-3, atol=1e-4)


def test_it_is_saved_merged_truncated_and_exported_as_a_lora(tmp_path):
    base, net, adapters, x = adapted()
    move(adapters)
    net.eval()
    expected = net(x).detach()
    adarank.save_adapter(net, tmp_path / "saved")
    assert "23 parameters" in report(tmp_path / "saved")
    adarank.to_peft(net, tmp_path / "peft")
    for load, folder in ((adarank.load_adapter, "saved"), (adarank.from_peft, "peft")):
        fresh = copy.deepcopy(base)
        loaded = load(fresh, tmp_path / folder)
        torch.testing.assert_close(fresh.eval()(x), expected)
        assert {a.kind for a in loaded.values()} == {"vera" if folder == "saved" else "lora"}
        adarank.merge(fresh)
        torch.testing.assert_close(fresh(x), expected)
    with adarank.disabled(net):
        torch.testing.assert_close(net(x), base(x))
    assert adarank.truncate(net, 2) == adarank.compact(net) == dict.fromkeys(LAYERS, 2)
    again = pickle.loads(pickle.dumps(net))  # noqa: S301 - our own bytes
    again.load_state_dict(net.state_dict())
    torch.testing.assert_close(again(x), net(x))


def test_what_has_no_meaning_for_it_is_refused():
    _, net, adapters, _ = adapted()
    with pytest.raises(adarank.SettingError, match="nothing to allocate with adapter='vera'"):
        adarank.RankController(adapters, penalty=adarank.penalties.orthogonality())
    with pytest.raises(adarank.SettingError, match="'vera' is more than a low-rank"):
        adarank.compress(net, 2)
    with pytest.raises(adarank.SettingError, match=r"init must be default with adapter=vera.* \(got pissa\)"):
        adapted(init="pissa")
