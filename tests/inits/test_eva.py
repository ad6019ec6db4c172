"""EVA against NumPy's SVD of all inputs stacked, scikit-learn's incremental PCA and PEFT."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import adarank
from adarank import SettingError
from adarank.inits import eva
from adarank.inits.eva import Found
from adarank.inits.inputs import Inputs, update
from tests.experiments.test_run import inside
from tests.inits.conftest import Classifier, some_batches

NAMES = [f"net.layers.{i}.{part}" for i in range(3) for part in ("up", "down")]
quiet = pytest.mark.filterwarnings("ignore:init=eva:UserWarning")


def build():
    """The second block's `down` gets an input of almost one direction."""
    torch.manual_seed(0)
    model = Classifier(torch.float64)
    with torch.no_grad():
        up = model.net.layers[1].up
        up.weight.copy_(torch.outer(up.weight[:, 0], up.weight[0]))
    return model


def inputs_of(model, batches):
    """{name: every input row of every batch, [rows, d_in]}, in float64."""
    heard = {n: [] for n in NAMES}
    handles = [
        model.get_submodule(n).register_forward_hook(lambda _, args, __, n=n: heard[n].append(args[0].detach().numpy()))
        for n in NAMES
    ]
    model.eval()
    for batch in batches:
        model(**batch)
    for handle in handles:
        handle.remove()
    return {n: np.concatenate(rows) for n, rows in heard.items()}


def principal(x):
    """(explained variance ratios, directions) of the rows of x, by the SVD of the centred rows."""
    _, sigma, Vt = np.linalg.svd(x - x.mean(0), full_matrices=False)
    return sigma**2 / (sigma**2).sum(), Vt


def angle_free(a, b, atol=1e-7):
    np.testing.assert_allclose(np.abs((a * b).sum(1)), 1, atol=atol)


@quiet
@pytest.mark.parametrize("kind", ["svd", "lora"])
def test_directions_and_ranks_are_those_of_all_inputs_stacked(kind):
    """rho so large that nothing of `up`'s inputs is truncated: then the incremental decomposition is exact."""
    batches = some_batches(4, dtype=torch.float64)
    known = {n: principal(x) for n, x in inputs_of(build(), batches).items()}
    best = sorted(((ratio, -i) for i, n in enumerate(NAMES) for ratio in known[n][0]), reverse=True)[: 3 * len(NAMES)]
    expected = {n: sum(-j == i for _, j in best) for i, n in enumerate(NAMES)}
    adapters = adarank.adapt(build(), kind, rank=3, init=eva(rho=4.0, tau=1.0), batches=batches)
    assert {n: a.rank for n, a in adapters.items()} == expected
    assert len(set(expected.values())) > 1
    for name, adapter in adapters.items():
        exact = adapter.in_features == 12  # of `down`'s 20 directions, 12 are kept between batches
        angle_free(adapter.Q.detach().numpy(), known[name][1][: adapter.rank], 1e-9 if exact else 1e-5)
        assert not (adapter.P if kind == "lora" else adapter.lam).any()
        assert adapter.scale == 2.0


@pytest.mark.parametrize("sizes", [[30, 30, 30], [7, 40, 1, 25], [50]])
@pytest.mark.parametrize("k", [3, 9])
def test_the_incremental_pca_is_scikit_learn_s(sizes, k):
    """Truncated as well: k of 9 directions are kept between batches."""
    decomposition = pytest.importorskip("sklearn.decomposition")
    rng = np.random.default_rng(0)
    reference, ours, seen = decomposition.IncrementalPCA(n_components=min(k, *sizes)), None, []
    if min(sizes) < k:
        pytest.skip("scikit-learn wants at least k rows in every batch")
    for n in sizes:
        x = rng.normal(size=(n, 9)) * np.arange(1, 10) + rng.normal(size=9)
        seen.append(x)
        reference.partial_fit(x)
        ours = update(ours, torch.from_numpy(x), k)
    np.testing.assert_allclose(ours.mean, reference.mean_, atol=1e-10)
    np.testing.assert_allclose(ours.sigma, reference.singular_values_, rtol=1e-10)
    np.testing.assert_allclose(ours.ratio, reference.explained_variance_ratio_, rtol=1e-10)
    angle_free(ours.V.numpy(), reference.components_)
    if k == 9:
        np.testing.assert_allclose(ours.ratio, principal(np.concatenate(seen))[0], rtol=1e-10)


def test_batches_of_one_row_come_to_the_same():
    x = torch.randn(12, 5, dtype=torch.float64)
    step = None
    for row in x:
        step = update(step, row.unsqueeze(0), 5)
    ratio, directions = principal(x.numpy())
    np.testing.assert_allclose(step.ratio, ratio, atol=1e-10)
    angle_free(step.V.numpy(), directions)


class Attention(nn.Module):
    """Query, key and value of one input, then a layer with another, under an attention mask."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.query, self.key, self.value, self.out = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x, attention_mask=None):
        return self.out(self.query(x) * self.key(x).sigmoid() + 3 * self.value(x))


def masked_batches(count, rows=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    spread = torch.tensor([3.0, 2.0, 1.5, 1.0, 0.5, 0.25])
    found = []
    for _ in range(count):
        x = torch.randn(rows, 5, 6, generator=g) * spread
        mask = (torch.arange(5) < torch.randint(2, 6, (rows, 1), generator=g)).long()
        found.append({"x": torch.where(mask.bool().unsqueeze(2), x, torch.full_like(x, 50.0)), "attention_mask": mask})
    return found


@quiet
def test_layers_of_one_input_have_one_set_of_directions_and_padding_is_left_out():
    batches = masked_batches(4)
    model = Attention()
    adapters = adarank.adapt(model, "lora", 3, ["query", "key", "value", "out"], init=eva(rho=2.0), batches=batches)
    most = min(a.rank for n, a in adapters.items() if n != "out")
    for name in ("key", "value"):
        assert torch.equal(adapters["query"].Q[:most], adapters[name].Q[:most])
    real = np.concatenate([b["x"][b["attention_mask"].bool()].numpy() for b in batches]).astype(np.float64)
    np.testing.assert_allclose(
        np.abs((adapters["query"].Q[:most].detach().numpy() * principal(real)[1][:most]).sum(1)), 1, atol=1e-3
    )
    assert sum(a.rank for a in adapters.values()) == 12


class Twice(Attention):
    """Its query also meets the input of `out`, as projections of DeBERTa meet its relative positions."""

    def forward(self, x, attention_mask=None):
        return self.query(super().forward(x))


@quiet
def test_a_layer_that_is_called_again_leaves_the_statistics_of_the_others_alone():
    """Layers with one first input shared their statistics for good, so that `value` had what only `query` met."""
    found = []
    for names in (["value"], ["query", "key", "value"]):
        init = eva(rho=1.0, tau=1.0)
        adapters = adarank.adapt(Twice(), "lora", 3, names, init=init, batches=masked_batches(4))
        found.append(adapters["value"].Q.detach())
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("order", [["query", "key", "value"], ["key", "query", "value"]])
def test_layers_share_statistics_as_long_as_their_inputs_are_the_same(order):
    model, inputs = nn.ModuleDict({name: nn.Linear(6, 6) for name in order}), Inputs("eva", partial(update, k=6), True)
    with inputs.recording(model):
        for count in (1, 2):
            inputs.begin(None)
            x = torch.randn(10, 6)
            for name in order:
                model[name](x)
            assert len({id(inputs.of(name)) for name in order}) == count
            model["key"](torch.randn(10, 6))
            assert inputs.of("query") is inputs.of("value") is not inputs.of("key")
    assert (inputs.of("query").rows, inputs.of("key").rows) == (20, 40)


@quiet
def test_positions_left_out_of_a_language_model_s_loss_are_left_out():
    batches = masked_batches(3)
    for batch in batches:
        batch["labels"] = torch.where(batch.pop("attention_mask").bool(), 1, -100)
        batch["attention_mask"] = torch.ones_like(batch["labels"])
    model = Attention()
    forward = model.forward
    model.forward = lambda x, attention_mask, labels: forward(x)
    other = adarank.adapt(Attention(), "lora", 3, ["query"], init=eva(), batches=masked_batches(3))
    found = adarank.adapt(model, "lora", 3, ["query"], init=eva(), batches=batches)
    assert torch.equal(found["query"].Q, other["query"].Q)


@quiet
def test_the_same_directions_and_ranks_as_peft_s():
    peft = pytest.importorskip("peft")
    batches = masked_batches(12, rows=60)
    names = ["query", "key", "value", "out"]
    config = peft.LoraConfig(
        r=2, lora_alpha=4, target_modules=names, init_lora_weights="eva", eva_config=peft.EvaConfig(rho=2.0)
    )
    theirs = peft.get_eva_state_dict(
        Attention(),
        batches,
        config,
        prepare_model_inputs_fn=lambda batch, _: batch["attention_mask"].nonzero(),
        show_progress_bar=False,
    )
    adapters = adarank.adapt(Attention(), "lora", 2, names, init=eva(rho=2.0), batches=batches)
    assert {n: a.rank for n, a in adapters.items()} == {n: len(theirs[n]) for n in names}
    for name, adapter in adapters.items():
        cosine = torch.nn.functional.cosine_similarity(adapter.Q, theirs[name]).abs()
        assert cosine.min() > 0.99  # what tau leaves open: the two end after different numbers of batches


def test_it_ends_as_soon_as_nothing_turns_any_more():
    used = []

    def endless():
        while True:
            used.append(1)
            yield masked_batches(1, rows=60)[0]  # the same rows again and again

    adarank.adapt(Attention(), rank=2, targets=["query", "out"], init=eva(steps=50), batches=endless())
    assert len(used) == 2


def test_an_end_before_convergence_is_said():
    with pytest.warns(UserWarning, match=r"init=eva: the inputs of 2 of 2 layers had not converged"):
        adarank.adapt(Attention(), rank=2, targets=["query", "out"], init=eva(steps=1), batches=masked_batches(3))


def test_ranks_are_zero_to_rho_times_the_rank_and_the_earlier_of_equals_first():
    ranks = eva().ranks
    found = {
        n: Found(torch.eye(4), torch.tensor(r))
        for n, r in {"a": [0.9, 0.8, 0.7, 0.6], "b": [0.1] * 4, "c": [0.1] * 4}.items()
    }
    assert ranks(found, {"a": 2, "b": 2, "c": 1}) == {"a": 4, "b": 1, "c": 0}
    assert ranks(found, {"a": 1, "b": 1, "c": 1}) == {"a": 3, "b": 0, "c": 0}


@quiet
def test_a_module_of_rank_0_trains_saves_and_is_allocated(tmp_path):
    """The first layer's input varies in one direction, the other's in six."""
    x = torch.randn(50, 5, 1) * torch.tensor([5.0, 0, 0, 0, 0, 0])
    model = Attention()
    adapters = adarank.adapt(
        model, "svd", 1, ["query", "out"], init=eva(rho=2.0), batches=[{"x": x + 1e-3 * torch.randn(50, 5, 6)}] * 3
    )
    assert sum(a.rank for a in adapters.values()) == 2
    adapters = adarank.adapt(
        model2 := Attention(), "svd", {"query": 2, "out": 2}, ["query", "out"], init=uneven(), batches=[]
    )
    assert [a.rank for a in adapters.values()] == [4, 0]
    controller = adarank.RankController(
        adapters,
        score=adarank.scores.adalora(),
        schedule=adarank.schedules.cubic(initial=4, final=2, t_i=1, t_f=1, total=6, interval=1),
    )
    optimizer = torch.optim.AdamW([p for p in model2.parameters() if p.requires_grad], lr=0.1)
    controller.attach(optimizer)
    for _ in range(6):
        model2(x).square().mean().backward()
        controller.after_backward()
        optimizer.step()
        optimizer.zero_grad()
    assert adarank.ranks(model2) == {"query": 2, "out": 0}
    adarank.save_adapter(model2, tmp_path)
    again = Attention()
    adarank.load_adapter(again, tmp_path)
    torch.testing.assert_close(again(x), model2.eval()(x))


def uneven():
    found = {
        n: Found(torch.eye(6)[:4], torch.tensor([0.9, 0.8, 0.7, 0.6]) * f) for n, f in (("query", 1.0), ("out", 0.1))
    }
    return eva()._replace(measure=lambda *_: found, ranks=lambda found, asked: eva().ranks(found, asked))


@pytest.mark.slow
@quiet
def test_a_budget_in_parameters_holds_what_the_moved_ranks_cost(tmp_path):
    """A constant budget asked for (init_rank = rank): the moved ranks may cost less than it, never more."""
    small = ["tiny=true", "train.steps=6", "train.eval_every=6", "task.limit=16", "init.steps=3", "targets=all"]
    inside("method=adalora", "init=eva", "budget.unit=parameters", "init_rank=4", "rank=4", *small, f"out={tmp_path}")
    summary = json.loads(next(tmp_path.glob("*/summary.json")).read_text())
    assert summary["status"] == "finished"
    assert sum(summary["rank"]["final"].values()) <= 4 * len(summary["rank"]["final"])


class Pictures(nn.Module):
    def __init__(self, **how):
        super().__init__()
        self.conv = nn.Conv2d(2, 12, 3, **how)

    def forward(self, x):
        return self.conv(x)


@quiet
@pytest.mark.parametrize(
    "how",
    [{}, {"stride": 2, "padding": 1}, {"padding": "same", "dilation": 2}, {"padding": 1, "padding_mode": "reflect"}],
)
def test_a_convolution_s_input_is_its_patches(how):
    """The rows are what the matrix is multiplied by: their principal directions are the output's, through W."""
    x = torch.randn(4, 2, 9, 9)
    torch.manual_seed(0)
    model = Pictures(bias=False, **how)
    adapters = adarank.adapt(model, "lora", 9, ["conv"], init=eva(rho=1.0), batches=[(x,), (x,)])
    adapter = adapters["conv"]
    rows = eva_rows(model.conv.base, x)
    W = model.conv.base.weight.flatten(1)
    out = model.conv.base(x).flatten(2).transpose(1, 2).reshape(-1, 12)
    torch.testing.assert_close(rows @ W.t(), out, rtol=1e-4, atol=1e-5)
    directions = principal(rows.detach().numpy().astype(np.float64))[1][:3]
    np.testing.assert_allclose(np.abs((adapter.Q[:3].detach().numpy() * directions).sum(1)), 1, atol=1e-3)


@quiet
def test_convolutions_of_one_input_have_the_patches_of_their_own_kernels():
    """The second shared the first's, whose length is another, and the init ended in a traceback."""

    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.narrow = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)

        def forward(self, x):
            return self.wide(x) + self.narrow(x)

    torch.manual_seed(0)
    batches = [(torch.randn(4, 3, 6, 6),) for _ in range(2)]
    adapters = adarank.adapt(Beside(), "lora", 2, ["wide", "narrow"], init=eva(), batches=batches)
    assert {name: a.Q.shape[1] for name, a in adapters.items()} == {"wide": 27, "narrow": 3}


def eva_rows(base, x):
    from adarank.inits.inputs import _rows

    return _rows(base, x, None)


def test_what_has_no_vectors_or_no_rows_is_refused():
    model = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 6))
    with pytest.raises(SettingError, match="init=eva needs inputs that are vectors, but 0 is an embedding"):
        adarank.adapt(model, rank=2, targets=["0", "1"], init="eva", batches=[(torch.tensor([[1]]),)])
    with pytest.raises(SettingError, match="init=eva found 1 input directions for 2 triplets"):
        adarank.adapt(model, rank=2, targets=["1"], init="eva", batches=[(torch.tensor([[1]]),)])
    model = nn.Sequential(nn.Linear(6, 6))
    model.other = nn.Linear(6, 6)
    model.forward = lambda x: model[0](x)
    with pytest.raises(SettingError, match="the batches give other no input"):
        adarank.adapt(model, rank=2, targets=["0", "other"], init="eva", batches=[(torch.randn(9, 6),)])


@pytest.mark.parametrize("bad", [{"rho": 0.5}, {"tau": 1.5}, {"tau": -0.1}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(SettingError, match=rf"^init\.{next(iter(bad))} must be .*\(got {next(iter(bad.values()))}\)$"):
        eva(**bad)
