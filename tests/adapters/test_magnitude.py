"""DoRA's magnitude over every kind of layer, against the paper's equation written out row by row."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.func import functional_call

import adarank
from adarank import SettingError
from adarank.adapters.magnitude import Magnitude
from adarank.commands.export import export_folder
from adarank.commands.inspect import report
from tests.adapters.test_layers import CASES, TARGETS, Mixed, dense, in_shape
from tests.mixtures import mixture, rows
from tests.representatives import representatives

KINDS = ("dora", "svd_dora")


@torch.no_grad()
def disturb(adapters):
    """Other factors, and magnitudes that are no longer the weight's."""
    for adapter in adapters:
        for part in ("Q", "P", *(("lam",) if adapter.learns_lambda else ())):
            getattr(adapter, part).normal_(0.0, 0.5)
        adapter.magnitude.mul_(1 + 0.3 * torch.rand_like(adapter.magnitude))


def make(case, kind="svd_dora", rank=3, dropout=0.0):
    torch.manual_seed(0)
    build, data = CASES[case]
    model = nn.ModuleDict({"layer": build()})
    adapters = adarank.adapt(model, kind, rank=3, targets=["layer"], alpha=4.5, dropout=dropout)
    adapter = adapters["layer"]
    for part in ("Q", "lam", "P", "mask"):
        adapter.replace(part, getattr(adapter, part).detach()[:rank])
    disturb([adapter])
    return adapter, data()


def weight_of(adapter, Q, lam, P, m):
    """W' [d_out, d_in], eq. 5 of the paper, with ‖·‖ constant in the gradient (§4.3)."""
    plain = dense(adapter.base)
    W = plain.weight.detach()
    W = W.flatten(1) if isinstance(plain, nn.Conv2d) else in_shape(plain, W)
    found = []
    for i in range(len(W)):
        v = W[i] + sum(adapter.scale * lam[k] * P[k, i] * Q[k] for k in range(len(Q)))
        found.append(m[i] * v / v.detach().square().sum().sqrt())
    return torch.stack(found)


def reference(adapter, x, lam):
    """The plain layer with W' in place of W, and the leaves Q, λ, P, m, x that gradients are asked of."""
    plain = dense(adapter.base)
    leaves = [t.detach().clone().requires_grad_() for t in (adapter.Q, lam, adapter.P, adapter.magnitude)]
    leaf = x.detach().clone()
    leaf.requires_grad_(x.is_floating_point())
    weights = {n: p.detach() for n, p in plain.named_parameters()}
    weights["weight"] = in_shape(plain, weight_of(adapter, *leaves))
    return functional_call(plain, weights, (leaf,)), (*leaves, leaf)


@pytest.mark.parametrize("case", representatives(CASES, ["linear", "conv1d", "conv2d, dilated", "embedding", "4-bit"]))
@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_the_paper_s_equation_and_its_gradients(case, kind):
    adapter, x = make(case, kind)
    adapter.mask[1] = False  # training does not look at it
    expected, (Q, lam, P, m, leaf) = reference(adapter, x, adapter.lam)
    x = x.clone().requires_grad_(x.is_floating_point())
    found = adapter.train()(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    weights = torch.randn_like(expected)
    if (padding := getattr(adapter.base, "padding_idx", None)) is not None:
        weights = weights * (x != padding).unsqueeze(-1)  # whose factors learn nothing
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    pairs = [(adapter.Q, Q), (adapter.P, P), (adapter.magnitude, m)] + [(adapter.lam, lam)] * (kind == "svd_dora")
    for here, there in pairs:
        torch.testing.assert_close(here.grad, there.grad, rtol=1e-4, atol=1e-4)
    if x.is_floating_point():
        torch.testing.assert_close(x.grad, leaf.grad, rtol=1e-4, atol=1e-4)
    expected, _ = reference(adapter, x, adapter.lam * torch.tensor([1.0, 0.0, 1.0]))
    torch.testing.assert_close(adapter.eval()(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", representatives(CASES, ["linear", "conv2d"]))
def test_rank_zero_keeps_its_magnitude(case):
    adapter, x = make(case, rank=0)
    expected, _ = reference(adapter, x, adapter.lam)
    torch.testing.assert_close(adapter(x), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(adapter(x), adapter.base(x), atol=1e-2)


def test_dropout_reaches_what_it_reaches_in_the_authors_code():
    adapter, x = make("linear", dropout=0.5)
    torch.manual_seed(5)
    found = adapter.train()(x)
    torch.manual_seed(5)
    d = nn.functional.dropout(x, 0.5)
    W, b = adapter.base.weight, adapter.base.bias
    V = W + adapter.scale * (adapter.P.t() * adapter.lam) @ adapter.Q
    scale = adapter.magnitude / V.norm(dim=1)
    expected = x @ W.t() + b + (scale - 1) * (d @ W.t()) + scale * (d @ (V - W).t())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:merging into a 4-bit base")
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_merged_unmerged_copied_saved_and_loaded_over_all_kinds(kind, tmp_path):
    torch.manual_seed(0)
    model = Mixed()
    x, fresh = torch.randint(0, 9, (6, 7)), deepcopy(model)
    model.eval()
    base = model(x)
    adapters = adarank.adapt(model, kind, rank=3, targets=TARGETS, train=["head"])
    torch.testing.assert_close(model(x), base)
    disturb(adapters.values())
    for i, adapter in enumerate(adapters.values()):
        adapter.mask[: i % 4] = False
    expected, state = model(x), {n: t.clone() for n, t in model.state_dict().items()}
    assert not torch.allclose(base, expected, atol=1e-3)
    with adarank.disabled(model):
        torch.testing.assert_close(model(x), base)

    adarank.save_adapter(model, tmp_path)
    loaded = adarank.load_adapter(fresh, tmp_path)
    assert {a.kind for a in loaded.values()} == {kind}
    torch.testing.assert_close(fresh.eval()(x), expected, rtol=1e-4, atol=1e-5)

    adarank.merge(model)
    assert not any(isinstance(m, Magnitude) for m in model.modules())
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    copy = deepcopy(model)
    for unmerged in (model, copy):
        adarank.unmerge(unmerged)
        torch.testing.assert_close(unmerged(x), expected, rtol=1e-4, atol=1e-5)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=1e-4, atol=1e-5)


def test_a_row_of_zeros_stays_zero(net):
    with torch.no_grad():
        net.embed.weight[2] = 0.0
    adapters = adarank.adapt(net, "svd_dora", rank=2, targets=["embed"])
    disturb(adapters.values())
    out = adapters["embed"](torch.randn(4, 8))
    out.sum().backward()
    torch.testing.assert_close(out[:, 2], adapters["embed"].base.bias[2].expand(4))
    assert all(p.grad.isfinite().all() for p in adapters["embed"].parameters() if p.requires_grad)
    adarank.merge(net)
    adarank.unmerge(net)
    assert not net.embed.base.weight[2].any()


@pytest.mark.parametrize("init", ["default", "pissa", "olora", "gate"])
def test_the_function_is_that_of_the_base_at_the_start(net, init):
    x = torch.randn(5, 8)
    before = net(x)
    adapters = adarank.adapt(net, "svd_dora", rank=3, init=init)
    torch.testing.assert_close(net(x), before, rtol=1e-4, atol=1e-5)
    with adarank.disabled(net):
        torch.testing.assert_close(net(x), before, rtol=1e-4, atol=1e-5)
    counts, outputs = adarank.trainable_parameters(net), sum(a.out_features for a in adapters.values())
    assert counts["adapter"] == sum(3 * a.triplet_cost for a in adapters.values()) + outputs
    next(iter(adapters.values())).mask[0] = False
    assert adarank.trainable_parameters(net)["kept"] == counts["adapter"] - next(iter(adapters.values())).triplet_cost


@pytest.mark.usefixtures("safe_bf16")
def test_autocast_agrees_with_fp32_within_bf16():
    adapter, x = make("linear")
    exact = adapter(x)
    norm = adapter.norm(adapter.lam)
    with torch.autocast("cpu", torch.bfloat16):
        found = adapter(x)
        assert found.dtype == torch.bfloat16
        assert torch.equal(adapter.norm(adapter.lam), norm)  # never in bf16
    found.float().sum().backward()
    assert ((found - exact).norm() / exact.norm()).item() < 0.02
    gradients = [p.grad.clone() for p in (adapter.Q, adapter.lam, adapter.P, adapter.magnitude)]
    adapter.zero_grad()
    exact.sum().backward()
    for there, here in zip(gradients, (adapter.Q, adapter.lam, adapter.P, adapter.magnitude), strict=True):
        assert there.dtype == torch.float32
        assert ((there - here.grad).norm() / here.grad.norm()).item() < 0.05


@pytest.mark.parametrize("case", representatives(["linear", "conv2d", "embedding"], 0))
def test_it_compiles(case):
    adapter, x = make(case)
    expected = adapter(x)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(adapter, backend="aot_eager")(x), expected)


@pytest.mark.filterwarnings("ignore:no adapter can wrap")
def test_experts_have_magnitudes_of_their_own_which_peft_cannot_hold(tmp_path):
    model = mixture("Mixtral").eval()
    ids = rows()
    with torch.no_grad():
        before = model(input_ids=ids).logits
        adapters = adarank.adapt(model, "dora", rank=2, targets="experts")
        torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=1e-4, atol=1e-5)
        disturb(adapters.values())
        expected = model(input_ids=ids).logits
        with pytest.raises(SettingError, match=r"PEFT has no DoRA of stacked experts, such as .*; merge the adapter"):
            adarank.to_peft(model, tmp_path)
        adarank.merge(model)
        torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)


def test_an_offloaded_weight_is_refused_and_the_model_is_as_before(net):
    net.embed.to("meta")
    net.embed._hf_hook = type("Hook", (), {"execution_device": torch.device("cpu")})()
    with pytest.raises(SettingError, match="adapter=dora needs the norms of its base's weight, which is offl"):
        adarank.adapt(net, "dora", rank=2, targets=["embed"])
    assert type(net.embed) is nn.Linear


def test_the_commands_say_what_it_is(net, tmp_path):
    adapters = adarank.adapt(net, "svd_dora", rank=3, targets=["embed", "down"])
    disturb(adapters.values())
    adapters["embed"].mask[:] = False
    adarank.save_adapter(net, tmp_path / "saved")
    said = report(tmp_path / "saved")
    assert said.endswith("describe the triplets, without the adapter's other trained parameters")
    assert f"{4 * 12 + 3 * 3 * (12 + 20 + 1)} parameters" in said  # four magnitudes, three modules with triplets
    assert "DoRA of rank 3 on 4 modules" in export_folder(tmp_path / "saved", tmp_path / "peft")
    assert "kind dora" in report(tmp_path / "peft")


def test_compressing_is_refused(net):
    adarank.adapt(net, "dora", rank=2)
    with pytest.raises(SettingError, match="'dora' is more than a low-rank ΔW to compress"):
        adarank.compress(net, 3)
