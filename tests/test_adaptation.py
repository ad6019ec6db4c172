import numpy as np
import pytest
import torch
import transformers
from torch import nn

import adarank
from adarank import SettingError
from adarank.adapters.lowrank import LowRank
from adarank.pieces import needs_of
from tests.conftest import Net

ALL = [f"layers.{i}.{name}" for i in range(3) for name in ("up", "down")]


def test_suffixes_a_regex_a_name_and_all_linear_select_alike(net):
    from copy import deepcopy

    for targets in (["up", "down"], r"layers\.\d\.(up|down)", "all-linear", ["layers.0.up", "up", "down"]):
        assert list(adarank.adapt(deepcopy(net), targets=targets, rank=2)) == ALL
    assert list(adarank.adapt(deepcopy(net), targets="down", rank=2)) == ALL[1::2]


def test_all_linear_without_blocks_takes_every_linear():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    assert list(adarank.adapt(model, rank=1)) == ["0", "2"]


@pytest.mark.parametrize("adapter", ["svd", "lora"])
def test_the_function_is_kept_and_only_the_adapter_and_train_learn(net, adapter):
    x = torch.randn(5, 8)
    before = net(x)
    adapters = adarank.adapt(net, adapter, rank=4, targets=["up"], train=["head"])
    torch.testing.assert_close(net(x), before)
    parts = ("Q", "lam", "P") if adapter == "svd" else ("Q", "P")
    expected = {f"{name}.{part}" for name in adapters for part in parts} | {"head.weight", "head.bias"}
    assert {n for n, p in net.named_parameters() if p.requires_grad} == expected
    assert all(isinstance(net.get_submodule(n), LowRank) and net.get_submodule(n) is a for n, a in adapters.items())


def test_it_learns_with_either_adapter(net):
    x, y = torch.randn(64, 8), torch.randint(0, 3, (64,))
    adarank.adapt(net, "lora", rank=4)
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(60):
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_scale_is_alpha_over_rank_and_alpha_defaults_to_twice_the_rank(net):
    ranks = dict.fromkeys(ALL, 3) | {"layers.1.up": 5}
    assert {a.scale for a in adarank.adapt(net, rank=ranks).values()} == {2.0}


def test_alpha_given(net):
    assert {a.scale for a in adarank.adapt(net, rank=4, alpha=6).values()} == {1.5}


@pytest.mark.parametrize("training", [True, False])
def test_adapters_have_the_dropout_asked_for_and_the_mode_of_the_model(net, training):
    adapters = adarank.adapt(net.train(training), rank=2, dropout=0.3)
    assert {(a.dropout, a.training) for a in adapters.values()} == {(0.3, training)}


def test_a_rank_per_module(net):
    wanted = {"layers.0.up": 1, "layers.2.down": 7}
    adarank.adapt(net, rank=wanted, targets=list(wanted))
    assert adarank.ranks(net) == wanted


def test_parameter_counts_are_exact(net):
    total = sum(p.numel() for p in net.parameters())
    adapters = adarank.adapt(net, "svd", rank=4, train=["head"])
    inside = 6 * 4 * (12 + 20 + 1)
    counts = adarank.trainable_parameters(net)
    assert counts == {
        "total": total + inside,
        "trainable": inside + 39,
        "adapter": inside,
        "kept": inside,
        "other": 39,
        "frozen": total - 39,
    }
    adapters["layers.0.up"].mask[:3] = False
    assert adarank.trainable_parameters(net)["kept"] == inside - 3 * 33
    assert adarank.ranks(net)["layers.0.up"] == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"targets": ["uo"]}, "targets='uo' matches no module; similar names: up"),
        ({"targets": "layers[.*"}, "neither a module's name nor a regular expression"),
        (
            {"targets": ["layers"]},
            "matches only ModuleList modules; an adapter can wrap Linear, Conv1D, Conv2d, Embedding, Linear4bit",
        ),
        ({"targets": []}, "targets must name at least one module, or be 'all-linear' (got [])"),
        ({"rank": 0}, "rank must be a whole number from 1 to 12 (got 0), because layers.0.up is 12 → 20"),
        ({"rank": 13}, "rank must be a whole number from 1 to 12 (got 13)"),
        ({"rank": 2.5}, "(got 2.5)"),
        ({"rank": True}, "(got True)"),
        ({"rank": {"layers.0.up": 2}}, "rank has no entry for the target 'layers.0.down'"),
        ({"rank": {**dict.fromkeys(ALL, 2), "layers.9.up": 2}}, "rank names 'layers.9.up', which is not a target"),
        ({"adapter": "lara"}, "adapter must be one of dora, lora, matryoshka, svd, svd_dora, vera (got 'lara')"),
        ({"alpha": 0}, "alpha must be a number above 0, or None for 2·rank (got 0)"),
        ({"dropout": 1.0}, "dropout must be at least 0 and less than 1 (got 1.0)"),
        ({"init": "pizza"}, f"init must be one of {', '.join(adarank.inits.__all__)} (got 'pizza')"),
        ({"train": ["haed"]}, "train='haed' matches no module; similar names: head"),
    ],
)
def test_bad_arguments_are_refused_in_a_sentence_and_change_nothing(net, arguments, says):
    with pytest.raises(SettingError) as error:
        adarank.adapt(net, **{"rank": 2, **arguments})
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert not any(isinstance(m, LowRank) for m in net.modules())
    assert all(p.requires_grad for p in net.parameters())


def test_numpy_s_integers_are_ranks(net):
    ranks = {name: np.int64(i + 1) for i, name in enumerate(ALL)}
    adarank.adapt(net, rank=ranks)
    assert adarank.ranks(net) == {name: i + 1 for i, name in enumerate(ALL)}
    for make in (np.int32, np.uint8):
        assert set(adarank.ranks(adapted_with(make(3))).values()) == {3}


def adapted_with(rank):
    model = Net()
    adarank.adapt(model, rank=rank)
    return model


def test_what_the_harness_supplies_is_declared():
    assert needs_of(adarank.adapt) == {"model", "rank", "targets", "init", "batches", "train"}
    assert needs_of(adarank.bottlenecks) == {"model", "rank", "targets", "train"}
    assert needs_of(adarank.bitfit) == needs_of(adarank.head) == {"model", "train"}


def test_a_model_is_adapted_once(net):
    adarank.adapt(net, rank=2)
    with pytest.raises(SettingError, match="already has adapters"):
        adarank.adapt(net, rank=2)


def test_a_bare_linear_cannot_be_wrapped_in_place():
    with pytest.raises(SettingError, match="put it inside a module"):
        adarank.adapt(nn.Linear(4, 4), rank=2)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "deberta_v2", "llama"])
def test_all_linear_reaches_the_blocks_of_real_architectures_and_nothing_else(architecture):
    from adarank.harness.models import tiny

    built = tiny(architecture, width=32, layers=2).build(2)
    found = adarank.adapt(built.model, rank=2, targets="all-linear", train=built.head)
    assert len(found) == 2 * (7 if architecture == "llama" else 6)
    assert not any(word in name for name in found for word in ("embed", "pooler", "classifier", "score"))
    out = built.model(**built.tokenizer(["a b", "c"], padding=True, return_tensors="pt")).logits
    out.square().sum().backward()
    assert all(p.grad is not None for a in found.values() for p in (a.Q, a.lam, a.P))


BLOCK = ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense")
BLOCK_QUERY = f"roberta.encoder.layer.0.{BLOCK[0]}"


def roberta():
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return transformers.RobertaForSequenceClassification(transformers.RobertaConfig(vocab_size=50, **sizes))


@pytest.mark.parametrize("targets", [["query", "dense"], r".*(query|dense)"])
def test_targets_leave_out_what_train_trains_as_a_whole(targets, tmp_path):
    model = roberta()
    adapters = adarank.adapt(model, rank=2, targets=targets, train=["classifier"])
    assert list(adapters) == [f"roberta.encoder.layer.0.{n}" for n in BLOCK]
    trained = {n for n, p in model.named_parameters() if p.requires_grad and not n.endswith((".Q", ".lam", ".P"))}
    assert trained == {f"classifier.{n}.{part}" for n in ("dense", "out_proj") for part in ("weight", "bias")}
    for adapter in adapters.values():
        nn.init.ones_(adapter.lam)
    adarank.to_peft(model, tmp_path)


@pytest.mark.parametrize(
    ("targets", "train", "says"),
    [
        (
            ["query", "classifier.dense"],
            ["classifier"],
            "targets='classifier.dense' matches only classifier.dense, which",
        ),
        (
            "classifier.dense",
            ["classifier"],
            "targets='classifier.dense' matches only classifier.dense, which train trains",
        ),
        (r"classifier\..*", ["classifier"], "matches only classifier.dense, which train trains as a whole"),
        (
            "query",
            ["layer.0"],
            "matches only roberta.encoder.layer.0.attention.self.query, which train trains as a whole",
        ),
        (
            ["query"],
            ["query"],
            "matches only roberta.encoder.layer.0.attention.self.query, which train trains as a whole",
        ),
        (
            "all-linear",
            ["encoder"],
            "targets='all-linear' found no nn.Linear in the model outside the modules in train",
        ),
    ],
)
def test_a_target_that_only_train_holds_is_refused(targets, train, says):
    model = roberta()
    with pytest.raises(SettingError) as error:
        adarank.adapt(model, rank=2, targets=targets, train=train)
    assert says in str(error.value)
    assert not any(isinstance(m, LowRank) for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_bottlenecks_leave_out_what_train_trains_as_a_whole():
    model = roberta()
    added = adarank.bottlenecks(model, ["dense"], 2, ["query", "dense"], train=["classifier"])
    assert list(added) == [f"roberta.encoder.layer.0.{n}" for n in BLOCK[1:]]
    plain = roberta()
    without = adarank.bottlenecks(plain, [f"layer.0.{n}" for n in BLOCK[1:]], 2, [f"layer.0.{n}" for n in BLOCK])
    assert [b.width for b in added.values()] == [b.width for b in without.values()]
    with pytest.raises(SettingError, match="matches no projection or LayerNorm outside the modules in train"):
        adarank.bottlenecks(roberta(), ["classifier.dense"], 2, ["query"], train=["classifier"])


def test_matrices_that_train_as_a_whole_are_not_said_to_stay_frozen(recwarn):
    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 12, 12))

    model = Net()
    model.layers[1].experts = Stack()
    assert adarank.adapt(model, rank=2, train=["experts"])
    assert not recwarn
    assert adarank.reach(model).missed == []
    assert trainable(model) > {"layers.1.experts.weight"}


def trainable(model):
    return {n for n, p in model.named_parameters() if p.requires_grad}


def peft_models():
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=2, target_modules=["query"])
    yield peft.get_peft_model(roberta(), lora)
    yield peft.get_peft_model(roberta(), lora).base_model.model
    model = roberta()
    model.add_adapter(lora)
    yield model
    yield peft.get_peft_model(roberta(), peft.IA3Config(target_modules=["key"], feedforward_modules=[]))
    yield peft.get_peft_model(
        roberta(), peft.LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"], task_type="SEQ_CLS")
    )
    yield peft.get_peft_model(roberta(), peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2))


def test_peft_s_modules_are_refused_by_everything_that_adapts_or_loads(tmp_path):
    plain = roberta()
    nn.init.ones_(adarank.adapt(plain, "lora", rank=2, targets=["query"])[BLOCK_QUERY].P)
    adarank.save_adapter(plain, tmp_path / "ours")
    adarank.to_peft(plain, tmp_path / "peft")
    for model in peft_models():
        before, modules = trainable(model), dict(model.named_modules())
        for call in (
            lambda model: adarank.adapt(model, rank=2, targets="all-linear"),
            lambda model: adarank.adapt(model, rank=2, targets=["value"]),
            lambda model: adarank.load_adapter(model, tmp_path / "ours"),
            lambda model: adarank.from_peft(model, tmp_path / "peft"),
            lambda model: adarank.bottlenecks(model, ["output.dense"], 2, ["query"]),
            lambda model: adarank.bitfit(model),
            lambda model: adarank.head(model, ["classifier"]),
        ):
            with pytest.raises(SettingError, match=r"already has adapters of another library .*merge_and_unload"):
                call(model)
        assert trainable(model) == before
        assert dict(model.named_modules()) == modules
    merged = next(peft_models()).merge_and_unload()
    assert adarank.adapt(merged, rank=2)
