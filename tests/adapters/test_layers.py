"""Every kind of layer against the layer itself with W + ΔW in its weight, gradients by autograd through the sum."""

import types
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from transformers.pytorch_utils import Conv1D

import adarank
from adarank import SettingError
from adarank.adapters import layers
from adarank.adapters.layers import layer_of
from adarank.adapters.lowrank import LowRank
from adarank.inits.init import Init
from tests.representatives import representatives


def four_bit(d_in=64, d_out=96, bias=True, double=True):
    import bitsandbytes as bnb  # takes seconds

    return bnb.nn.Linear4bit(d_in, d_out, bias, torch.float32, double, quant_type="nf4").to("cpu")


def conv(**settings):
    return nn.Conv2d(4, 6, (3, 2), **settings)


def image(*sides):
    return lambda: torch.randn(2, 4, *(sides or (9, 8)))


def ids():
    return torch.tensor([[0, 3, 3, 1], [1, 0, 8, 2]])


CASES = {
    "linear": (lambda: nn.Linear(7, 5), lambda: torch.randn(2, 3, 7)),
    "linear, no bias": (lambda: nn.Linear(7, 5, bias=False), lambda: torch.randn(3, 7)),
    "conv1d": (lambda: Conv1D(5, 7), lambda: torch.randn(2, 3, 7)),
    "conv2d": (conv, image()),
    "conv2d, no bias": (lambda: conv(bias=False), image()),
    "conv2d, strided and padded": (lambda: conv(stride=(2, 1), padding=(1, 2)), image()),
    "conv2d, dilated": (lambda: conv(dilation=2), image()),
    "conv2d, same": (lambda: conv(padding="same"), image()),
    "conv2d, circular": (lambda: conv(padding=1, padding_mode="circular"), image()),
    "conv2d, reflect": (lambda: conv(padding=(2, 1), padding_mode="reflect", stride=2), image()),
    "conv2d, channels last": (lambda: conv().to(memory_format=torch.channels_last), image()),
    "embedding": (lambda: nn.Embedding(9, 5), ids),
    "embedding, padding": (lambda: nn.Embedding(9, 5, padding_idx=0), ids),
    "embedding, last one pads": (lambda: nn.Embedding(9, 5, padding_idx=-1), ids),
    "4-bit": (four_bit, lambda: torch.randn(3, 64)),
    "4-bit, no bias, plain scales": (lambda: four_bit(bias=False, double=False), lambda: torch.randn(2, 3, 64)),
}


def dense(base):
    """(layer with a floating-point weight that computes what `base` does, W as [d_out, d_in] from the definition)."""
    if type(base).__name__ == "Linear4bit":
        from bitsandbytes.functional import dequantize_4bit

        plain = nn.Linear(base.in_features, base.out_features, base.bias is not None)
        plain.weight.data = dequantize_4bit(base.weight.data, base.weight.quant_state)
        if base.bias is not None:
            plain.bias.data = base.bias.data.clone()
        return plain
    return deepcopy(base)


def in_shape(base, delta):
    """ΔW [d_out, d_in] in the weight's own shape, from each layer's documentation."""
    if isinstance(base, nn.Conv2d):
        return delta.reshape(base.weight.shape)
    return delta.t() if isinstance(base, Conv1D | nn.Embedding) else delta


def make(case, kind="svd", rank=3, dropout=0.0):
    torch.manual_seed(0)
    build, data = CASES[case]
    base = build()
    layers.keep_gradients(base)  # as `wrap` does
    adapter = LowRank(base, kind, rank, scale=1.5, dropout=dropout)
    with torch.no_grad():
        for factor in (adapter.Q, adapter.P, *((adapter.lam,) if kind == "svd" else ())):
            factor.copy_(torch.randn(factor.shape) / 2)
    return adapter, data()


def reference(adapter, x, lam):
    """The layer with weight W + s·Σ λ_i P_i Q_iᵀ, and the leaves Q, λ, P, x that gradients are asked of."""
    plain = dense(adapter.base)
    Q, P = (t.detach().clone().requires_grad_() for t in (adapter.Q, adapter.P))
    lam = lam.detach().clone().requires_grad_()
    leaf = x.detach().clone()
    leaf.requires_grad_(x.is_floating_point())
    delta = sum(adapter.scale * lam[i] * torch.outer(P[i], Q[i]) for i in range(len(Q)))
    weights = dict(plain.named_parameters())
    weights = {n: p.detach() for n, p in weights.items()}
    weights["weight"] = weights["weight"] + (in_shape(plain, delta) if len(Q) else 0.0)
    return functional_call(plain, weights, (leaf,)), (Q, lam, P, leaf)


@pytest.mark.parametrize("kind", ["svd", "lora"])
@pytest.mark.parametrize("case", CASES)
def test_it_computes_the_layer_with_w_plus_delta_and_its_gradients(case, kind):
    adapter, x = make(case, kind)
    adapter.mask[1] = False  # training does not look at it
    expected, (Q, lam, P, leaf) = reference(adapter, x, adapter.lam)
    x = x.clone().requires_grad_(x.is_floating_point())
    found = adapter.train()(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    weights = torch.randn_like(expected)
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    torch.testing.assert_close(adapter.Q.grad, Q.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(adapter.P.grad, P.grad, rtol=1e-4, atol=1e-5)
    if kind == "svd":
        torch.testing.assert_close(adapter.lam.grad, lam.grad, rtol=1e-4, atol=1e-5)
    if x.is_floating_point():
        torch.testing.assert_close(x.grad, leaf.grad, rtol=1e-4, atol=1e-5)
    assert adapter.base.weight.grad is None


@pytest.mark.parametrize("case", CASES)
def test_evaluation_leaves_the_pruned_out(case):
    adapter, x = make(case)
    adapter.mask[1] = False
    expected, _ = reference(adapter, x, adapter.lam * torch.tensor([1.0, 0.0, 1.0]))
    found = adapter.eval()(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_rank_zero_computes_the_base(case):
    adapter, x = make(case, rank=0)
    expected, _ = reference(adapter, x, adapter.lam)
    torch.testing.assert_close(adapter(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_matrix_and_size_are_the_weight_s(case):
    adapter, _ = make(case)
    plain, layer = dense(adapter.base), adapter.layer
    matrix = layer.matrix(adapter.base)
    assert layer.size(adapter.base) == tuple(reversed(matrix.shape)) == (adapter.in_features, adapter.out_features)
    torch.testing.assert_close(in_shape(plain, matrix), plain.weight)


@pytest.mark.parametrize("case", CASES)
def test_dropout_is_the_path_s_alone_and_its_mean_is_the_exact_path(case):
    adapter, x = make(case, dropout=0.5)
    exact, base = adapter.eval()(x), adapter.base(x)
    if not x.is_floating_point():
        torch.testing.assert_close(adapter.train()(x), exact)  # ids have nothing to drop
        return
    adapter.train()
    with torch.no_grad():
        paths = torch.stack([adapter(x) - base for _ in range(400)])
    assert paths.std(0).max() > 0.1
    assert ((paths.mean(0) - (exact - base)).abs() <= 6 * paths.std(0) / 400**0.5 + 1e-4).all()


class Mixed(nn.Module):
    """One layer of every kind, in a stack and outside of it."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 12, padding_idx=0)
        self.stem = nn.Conv2d(1, 3, 3, stride=2, padding=1)
        self.up = nn.Linear(18, 64)
        self.four = four_bit()
        self.down = Conv1D(10, 96)
        self.head = nn.Linear(10, 2)

    def forward(self, ids):
        x = self.embed(ids).unsqueeze(1)  # [batch, 1, length, 12]
        x = self.stem(x).mean(2).flatten(1)  # [batch, 3 * 6]
        return self.head(torch.tanh(self.down(torch.tanh(self.four(torch.tanh(self.up(x)))))))


TARGETS = ["embed", "stem", "up", "four", "down"]


def mixed(kind="svd", rank=3, fill=True, seed=0):
    torch.manual_seed(seed)
    model = Mixed()
    adapters = adarank.adapt(model, adapter=kind, rank=rank, targets=TARGETS, train=["head"])
    with torch.no_grad():
        for adapter in adapters.values() if fill else ():
            adapter.Q.normal_(0, 0.3)
            adapter.P.normal_(0, 0.3)
            if kind == "svd":
                adapter.lam.normal_()
                adapter.mask[1] = False
    return model, adapters, torch.randint(0, 9, (6, 7))


@pytest.mark.filterwarnings("ignore:merging into a 4-bit base")
@pytest.mark.parametrize("kind", ["svd", "lora"])
def test_merge_and_unmerge_are_inverses_over_all_kinds(kind):
    model, adapters, x = mixed(kind)
    model.eval()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    expected = model(x)
    with adarank.disabled(model):
        base = model(x)
    assert not torch.allclose(base, expected, atol=1e-3)
    adarank.merge(model)
    assert not any(isinstance(m, LowRank) for m in model.modules())
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    adarank.unmerge(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-5, atol=1e-5)
    with adarank.disabled(model):
        torch.testing.assert_close(model(x), base, rtol=1e-4, atol=1e-5)
    assert model.get_submodule("four") is adapters["four"]


def test_merging_4_bits_warns_and_leaves_a_plain_linear():
    model, _, x = mixed()
    expected = model.eval()(x)
    with pytest.warns(UserWarning, match=r"4-bit base dequantises it.*torch\.float32"):
        adarank.merge(model)
    assert type(model.four) is nn.Linear
    assert not model.four.weight.requires_grad
    torch.testing.assert_close(deepcopy(model)(x), expected, rtol=1e-4, atol=1e-5)


def test_save_and_load_over_all_kinds(tmp_path):
    model, _, x = mixed()
    expected = model.eval()(x)
    adarank.save_adapter(model, tmp_path)
    torch.manual_seed(0)
    fresh = Mixed()
    loaded = adarank.load_adapter(fresh, tmp_path)
    assert [a.rank for a in loaded.values()] == [2] * 5
    torch.testing.assert_close(fresh.eval()(x), expected, rtol=1e-5, atol=1e-6)


def test_trainable_parameters_are_exact_over_all_kinds():
    model, _, _ = mixed()
    sides = [(9, 12), (9, 3), (18, 64), (64, 96), (96, 10)]
    base = sum(a * b for a, b in sides) + 3 + 64 + 96 + 10  # the embedding has no bias
    factors = 3 * sum(a + b + 1 for a, b in sides)
    assert adarank.trainable_parameters(model) == {
        "total": base + factors + 22,
        "trainable": factors + 22,
        "adapter": factors,
        "kept": factors * 2 // 3,
        "other": 22,
        "frozen": base,
    }


@pytest.mark.parametrize("compaction", ["off", "final"])
def test_the_controller_keeps_its_budget_over_all_kinds(compaction):
    model, adapters, x = mixed(fill=False)
    y = torch.randint(0, 2, (6,))
    controller = adarank.RankController(
        adapters,
        score=adarank.scores.adalora(),
        schedule=adarank.schedules.cubic(initial=15, final=7, t_i=2, t_f=4, total=14, interval=1),
        penalty=adarank.penalties.orthogonality(),
        compaction=compaction,
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    controller.attach(optimizer)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    losses = []
    for _ in range(14):
        loss = F.cross_entropy(model(x), y)
        losses.append(loss.item())
        loss.backward()
        controller.after_backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.5 * losses[0]
    assert sum(adarank.ranks(model).values()) == 7
    assert sum(a.rank for a in adapters.values()) == (7 if compaction == "final" else 15)
    for name, tensor in frozen.items():
        assert torch.equal(model.get_parameter(name), tensor), name
    before = model.eval()(x)
    adarank.compact(model, optimizer)
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-6)


def test_deepcopy_and_state_dict_over_all_kinds():
    model, _, x = mixed()
    copy, other = deepcopy(model), mixed(seed=1)[0]
    torch.testing.assert_close(copy(x), model(x))
    model.four.Q.data.zero_()
    assert copy.four.Q.any()
    # another 4-bit weight comes with its own scales, which load_state_dict does not take over; the rest travels
    other.four.base = deepcopy(copy.four.base)
    missing = other.load_state_dict(copy.state_dict(), strict=False)
    assert not missing.missing_keys
    assert all("four.base.weight." in key for key in missing.unexpected_keys)
    torch.testing.assert_close(other(x), copy(x))


@pytest.mark.usefixtures("safe_bf16")
@pytest.mark.parametrize("case", CASES)
def test_autocast_agrees_with_fp32_within_bf16(case):
    adapter, x = make(case)
    exact = adapter(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = adapter(x)
    found.float().sum().backward()
    assert adapter.Q.grad.dtype == adapter.P.grad.dtype == torch.float32
    assert ((found - exact).norm() / exact.norm()).item() < 0.02


@pytest.mark.parametrize("case", representatives(["linear", "conv1d", "conv2d", "embedding, padding"], 1))
def test_it_compiles(case):
    adapter, x = make(case)
    expected = adapter(x)
    torch._dynamo.reset()
    compiled = torch.compile(adapter, backend="aot_eager")
    found = compiled(x)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    gradient = adapter.Q.grad.clone()
    adapter.Q.grad = None
    adapter(x).sum().backward()
    torch.testing.assert_close(gradient, adapter.Q.grad)


def test_conv1d_takes_the_fused_path_and_its_reference_agrees():
    adapter, x = make("conv1d", dropout=0.3)
    found = []
    for fused in (True, False):
        adapter.fused = fused
        torch.manual_seed(1)
        adapter.zero_grad()
        out = adapter.train()(x)
        out.square().sum().backward()
        found.append((out, adapter.Q.grad.clone(), adapter.P.grad.clone(), adapter.lam.grad.clone()))
    assert [type(out.grad_fn).__name__ == "_LowRankLinearBackward" for out, *_ in found] == [True, False]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", [c for c in CASES if not c.startswith("4-bit")])
def test_start_from_keeps_the_function_and_disabled_computes_the_original(case):
    adapter, x = make(case)
    original = adapter.base(x)
    with torch.no_grad():
        gain = (adapter.lam * adapter.scale).unsqueeze(1)
        adapter.start_from(adapter.Q * gain, adapter.P)
    torch.testing.assert_close(adapter(x), original, rtol=1e-4, atol=1e-4)
    adapter.enabled = False
    torch.testing.assert_close(adapter(x), original, rtol=1e-4, atol=1e-4)


def test_a_4_bit_base_is_not_changed_by_an_init():
    adapter, _ = make("4-bit")
    with pytest.raises(SettingError, match="cannot subtract its ΔW from a 4-bit weight"):
        adapter.start_from(adapter.Q, adapter.P)


def from_identity(adapter, found):
    """An init as PiSSA's: ΔW₀ = s·Pᵀ Q out of the base, then the factors that make it up."""
    torch.nn.init.normal_(adapter.Q)
    torch.nn.init.normal_(adapter.P)
    adapter.start_from(adapter.Q.detach() * adapter.scale, adapter.P.detach())


def test_an_init_that_changes_the_base_is_refused_over_4_bits_and_leaves_the_model_as_it_was():
    torch.manual_seed(0)
    model, x = Mixed(), torch.randint(0, 9, (6, 7))
    before, trains = model(x), [n for n, p in model.named_parameters() if p.requires_grad]
    modules = {n: type(m) for n, m in model.named_modules()}
    with pytest.raises(SettingError, match="cannot subtract its ΔW from a 4-bit weight"):
        adarank.adapt(model, adapter="lora", rank=3, targets=TARGETS, init=Init("identity", from_identity))
    assert {n: type(m) for n, m in model.named_modules()} == modules
    assert [n for n, p in model.named_parameters() if p.requires_grad] == trains
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)


def test_an_adapter_that_starts_from_a_changed_base_is_not_loaded_over_4_bits(tmp_path):
    plain, quantised = nn.ModuleDict({"inner": nn.Linear(64, 96)}), nn.ModuleDict({"inner": four_bit()})
    adarank.adapt(plain, adapter="lora", rank=3, targets="inner", init=Init("identity", from_identity))
    adarank.save_adapter(plain, tmp_path)
    with pytest.raises(SettingError, match="starts from a changed base, and inner is a 4-bit layer"):
        adarank.load_adapter(quantised, tmp_path)
    assert type(quantised["inner"]).__name__ == "Linear4bit"


def test_4_bit_factors_are_fp32_and_its_evaluation_does_not_stop_gradients():
    model, adapters, x = mixed()
    assert adapters["four"].Q.dtype == torch.float32
    assert not model.four.base.support_avx512bf16_for_cpu
    with torch.no_grad():
        model.eval()(x)
    model.train()(x).sum().backward()
    assert adapters["up"].Q.grad.abs().sum() > 0


def test_a_repacked_4_bit_layer_is_refused(monkeypatch):
    model = Mixed()
    monkeypatch.setattr(model.four.weight.quant_state, "packing_format_for_cpu", True, raising=False)
    with pytest.raises(SettingError, match="the 4-bit layer four was repacked for inference"):
        adarank.adapt(model, targets=["up"])
    assert type(model.up) is nn.Linear


class Scaled(nn.Embedding):
    def forward(self, x):
        return 2 * super().forward(x)


def in_bytes(layer):
    layer.weight = nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    return layer


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), "a convolution in 2 groups"),
        (nn.Embedding(9, 4, max_norm=1.0), "an embedding with max_norm"),
        (nn.Embedding(9, 4, sparse=True), "sparse gradients"),
        (nn.Embedding(9, 4, scale_grad_by_freq=True), "scale_grad_by_freq"),
        (in_bytes(nn.Linear(4, 4)), "stored as torch.int8"),
    ],
)
def test_what_cannot_be_wrapped_as_it_is_says_why(layer, why):
    with pytest.raises(SettingError, match=f"targets: inner cannot be adapted: .*{why}"):
        adarank.adapt(nn.ModuleDict({"inner": layer}), targets="inner")


def test_a_layer_that_computes_in_its_own_way_is_of_no_kind():
    assert layer_of(Scaled(9, 4)) is None
    with pytest.raises(SettingError, match="matches only Scaled modules; an adapter can wrap Linear, Conv1D"):
        adarank.adapt(nn.ModuleDict({"inner": Scaled(9, 4)}), targets="inner")


def test_attention_that_reads_the_weight_without_calling_it_is_refused():
    with pytest.raises(SettingError, match=r"self_attn\.out_proj cannot be adapted: nn\.MultiheadAttention reads"):
        adarank.adapt(nn.ModuleDict({"self_attn": nn.MultiheadAttention(8, 2)}), targets="out_proj")


def test_an_encoder_layer_with_a_fast_path_is_refused_until_it_is_switched_off(tmp_path):
    def build():
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        return nn.ModuleDict({"encoder": nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)})

    with pytest.raises(SettingError, match=r"linear1 cannot be adapted: .*fast path .*set_fastpath_enabled\(False\)"):
        adarank.adapt(build())
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        model = build().eval()
        with pytest.warns(UserWarning, match="no adapter can wrap .*in_proj_weight"):
            adapters = adarank.adapt(model, rank=2)
        assert {name.rpartition(".")[2] for name in adapters} == {"linear1", "linear2"}
        x = torch.randn(2, 5, 8)
        before = model["encoder"](x)
        for adapter in adapters.values():
            nn.init.ones_(adapter.lam)
        assert not torch.allclose(model["encoder"](x), before)
        adarank.save_adapter(model, tmp_path)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    with pytest.raises(SettingError, match="fast path"):
        adarank.load_adapter(build(), tmp_path)


@pytest.mark.parametrize("kind", ["svd", "lora"])
@pytest.mark.parametrize("case", CASES)
def test_an_empty_batch_is_as_for_the_plain_layer_and_its_gradients_are_zero(case, kind):
    """An expert that no token was sent to, an image without proposals."""
    for rank, dropout, autocast in ((3, 0.0, False), (3, 0.5, False), (0, 0.0, False), (3, 0.0, True)):
        adapter, x = make(case, kind, rank, dropout)
        x = x[:0].requires_grad_(x.is_floating_point())
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            expected = adapter.base(x)
            for fused in (True, False):
                adapter.fused = fused
                assert adapter.eval()(x).shape == expected.shape
                adapter.zero_grad()
                found = adapter.train()(x)
                assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
                if rank:
                    found.sum().backward()
                    assert not adapter.Q.grad.any()
                    assert not adapter.P.grad.any()


# --- layers whose weight is computed, whose forward was replaced, or whose weight lies elsewhere ---

COMPUTED = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "weight norm by hooks": torch.nn.utils.weight_norm,
    "spectral norm by hooks": torch.nn.utils.spectral_norm,
}
PLAIN = {
    "linear": lambda: nn.Linear(8, 8),
    "conv1d": lambda: Conv1D(8, 8),
    "conv2d": lambda: nn.Conv2d(2, 8, 2),
    "embedding": lambda: nn.Embedding(9, 8),
}


@pytest.mark.filterwarnings("ignore:.*(weight_norm|spectral_norm).*:FutureWarning")
@pytest.mark.parametrize("layer", PLAIN)
@pytest.mark.parametrize("how", COMPUTED)
def test_a_layer_whose_weight_is_computed_is_refused_and_nothing_changes(how, layer, tmp_path):
    plain = nn.ModuleDict({"inner": PLAIN[layer]()})
    fill(adarank.adapt(plain, "lora", rank=2, targets="inner")["inner"])
    adarank.save_adapter(plain, tmp_path / "ours")
    adarank.to_peft(plain, tmp_path / "peft")
    model = nn.ModuleDict({"inner": PLAIN[layer]()})
    COMPUTED[how](model["inner"])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    says = r"targets: inner cannot be adapted: its weight is computed in each forward pass \(remove_parametrizations"
    for call in (
        lambda: adarank.adapt(model, targets="inner", rank=2),
        lambda: adarank.adapt(model, targets="inner", rank=2, init="pissa"),
        lambda: adarank.load_adapter(model, tmp_path / "ours"),
        lambda: adarank.from_peft(model, tmp_path / "peft"),
    ):
        with pytest.raises(SettingError, match=says):
            call()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


@torch.no_grad()
def fill(adapter):
    for factor in (adapter.Q, adapter.P):
        factor.normal_()
    if adapter.learns_lambda:
        adapter.lam.normal_()
    return adapter


@pytest.mark.filterwarnings("ignore:.*(weight_norm|spectral_norm).*:FutureWarning")
@pytest.mark.parametrize("layer", PLAIN)
@pytest.mark.parametrize("how", COMPUTED)
def test_a_layer_that_is_parametrised_after_adapting_is_called_and_not_merged(how, layer):
    model = nn.ModuleDict({"other": nn.Linear(8, 8), "inner": PLAIN[layer]()}).eval()
    adapters = adarank.adapt(model, rank=2, targets=["other", "inner"])
    fill(adapters["other"])
    adapter = fill(adapters["inner"])
    COMPUTED[how](adapter.base)
    x = (
        torch.arange(6).view(2, 3)
        if layer == "embedding"
        else torch.randn(3, *((2, 5, 5) if layer == "conv2d" else (8,)))
    )
    base = adapter.base(x)
    expected = base + adapter.layer.delta(adapter.base, x, adapter.Q, adapter.lam * adapter.scale, adapter.P)
    torch.testing.assert_close(adapter(x), expected)
    assert (expected - base).abs().max() > 0.1
    weight = adapters["other"].base.weight.clone()
    with pytest.raises(SettingError, match="the weight of inner cannot be changed by ΔW: its weight is computed"):
        adarank.merge(model)
    assert torch.equal(adapters["other"].base.weight, weight)
    assert model["other"] is adapters["other"]


def halved(self, x):
    return F.linear(x, 0.5 * self.weight, self.bias)


def same(self, x):
    return x @ self.weight.t() + self.bias


def patched(forward):
    model = nn.Sequential(nn.Linear(8, 8))
    model[0].forward = types.MethodType(forward, model[0])
    return model


def test_a_replaced_forward_is_called_and_merged_where_it_computes_the_same():
    x = torch.randn(3, 8)
    for forward, merges in ((halved, False), (same, True)):
        model = patched(forward)
        before = model(x)
        adapter = adarank.adapt(model, rank=2, targets=["0"])["0"]
        assert torch.equal(model(x), before)
        fill(adapter)
        expected = model(x)
        torch.testing.assert_close(expected, before + x @ adapter.delta().t())
        if merges:
            adarank.merge(model)
            torch.testing.assert_close(model(x), expected)
            adarank.unmerge(model)
        else:
            with pytest.raises(SettingError, match="the weight of 0 cannot be changed by ΔW: its forward was replaced"):
                adarank.merge(model)
        torch.testing.assert_close(model(x), expected)


def test_a_subclass_of_linear_is_called_and_merged_where_it_computes_the_same():
    for forward, merges in ((halved, False), (same, True)):
        model = nn.Sequential(type("Own", (nn.Linear,), {"forward": forward})(8, 8))
        x = torch.randn(3, 8)
        fill(adarank.adapt(model, rank=2, targets=["0"])["0"])
        expected = model(x)
        if merges:
            adarank.merge(model)
        else:
            with pytest.raises(SettingError, match="its forward was replaced"):
                adarank.merge(model)
        torch.testing.assert_close(model(x), expected)


def test_an_init_that_changes_the_base_is_refused_where_the_weight_is_not_what_is_computed(tmp_path):
    plain = nn.Sequential(nn.Linear(8, 8))
    adarank.adapt(plain, "lora", rank=2, init="pissa")
    adarank.save_adapter(plain, tmp_path)
    x = torch.randn(3, 8)
    for call in (
        lambda model: adarank.adapt(model, "lora", rank=2, targets=["0"], init="pissa"),
        lambda model: adarank.adapt(model, "lora", rank=2, targets=["0"], init=Init("identity", from_identity)),
        lambda model: adarank.load_adapter(model, tmp_path),
    ):
        model = patched(halved)
        before = model(x)
        with pytest.raises(SettingError, match="cannot be changed by ΔW: its forward was replaced"):
            call(model)
        assert type(model[0]) is nn.Linear
        assert torch.equal(model(x), before)
        assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("layer", PLAIN)
def test_an_offloaded_layer_is_called_trained_and_not_merged(layer):
    accelerate = pytest.importorskip("accelerate")
    x = (
        torch.arange(6).view(2, 3)
        if layer == "embedding"
        else torch.randn(3, *((2, 5, 5) if layer == "conv2d" else (8,)))
    )
    model = nn.Sequential(PLAIN[layer]())
    before = model(x)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    adapter = fill(adarank.adapt(model, rank=2, targets=["0"])["0"])
    assert adapter.base.weight.is_meta
    assert adapter.Q.device.type == "cpu"
    found = model(x)
    path = adapter.layer.delta(adapter.base, x, adapter.Q, adapter.lam * adapter.scale, adapter.P)
    torch.testing.assert_close(found, before + path)
    found.square().sum().backward()
    assert adapter.Q.grad.any()
    with pytest.raises(SettingError, match="the weight of 0 cannot be changed by ΔW: its weight is on the meta device"):
        adarank.merge(model)
    accelerate.hooks.remove_hook_from_module(adapter.base)
    adarank.merge(model)
    torch.testing.assert_close(model(x), found, rtol=1e-4, atol=1e-5)
