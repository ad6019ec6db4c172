"""Adapters that PEFT itself made in a separate process: the same logits here, and training goes on."""

import copy
import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import adarank
from adarank import SettingError
from adarank.integrations.peft_import import read_peft

GOOD = ("lora", "patterns", "rslora", "head", "embedding", "conv1d", "conv2d")
GOOD += ("adalora", "adalora_pruned", "adalora_conv1d", "dora", "dora_embedding", "dora_conv1d", "dora_conv2d")


def base(made, case):
    kind = getattr(transformers, (made / case / "class.txt").read_text())
    return kind.from_pretrained(made / case / "base").eval(), load_file(made / case / "inputs.safetensors")


@pytest.mark.parametrize("case", GOOD)
def test_an_adapter_of_peft_gives_the_same_logits_and_trains_on(made, case):
    model, inputs = base(made, case)
    with torch.no_grad():
        before = model(**inputs).logits
    adapters = adarank.from_peft(model, made / case / "adapter")
    expected = load_file(made / case / "logits.safetensors")["logits"]
    logits = model(**inputs).logits
    size = expected.abs().max()
    assert (logits - expected).abs().max() <= 1e-5 * size
    assert (before - expected).abs().max() > 1e-2 * size
    kind = {"adalora": "svd", "dora": "dora"}.get(case.partition("_")[0], "lora")
    assert {a.kind for a in adapters.values()} == {kind}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    labels, losses = torch.tensor([0, 1, 2]), []
    for _ in range(20):
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.99 * losses[0]


def test_the_gradients_of_a_dora_are_peft_s(made):
    model, inputs = base(made, "dora")
    adapters = adarank.from_peft(model, made / "dora" / "adapter")
    model(**inputs, labels=torch.tensor([0, 1, 2])).loss.backward()
    expected = load_file(made / "dora" / "gradients.safetensors")
    assert len(expected) == 3 * len(adapters)
    for name, a in adapters.items():
        for part, found in (("A", a.Q.grad), ("B", a.P.grad.t()), ("magnitude_vector", a.magnitude.grad)):
            there = expected[f"base_model.model.{name}.lora_{part}.default.weight"]
            torch.testing.assert_close(found, there, rtol=1e-4, atol=1e-6)


def test_ranks_and_head_are_those_of_peft(made):
    model, _ = base(made, "patterns")
    adarank.from_peft(model, made / "patterns" / "adapter")
    ranks = adarank.ranks(model)
    assert [r for n, r in ranks.items() if n.endswith("query")] == [2, 4]
    assert [r for n, r in ranks.items() if n.endswith("value")] == [3, 3]
    model, _ = base(made, "adalora_pruned")
    adapters = adarank.from_peft(model, made / "adalora_pruned" / "adapter")
    assert sum(adarank.ranks(model).values()) == sum(len(a.Q) for a in adapters.values()) < 5 * len(adapters)
    assert {n for n, p in model.named_parameters() if p.requires_grad and "classifier" in n} == {
        "classifier.weight",
        "classifier.bias",
    }


@pytest.mark.parametrize("case", ["lora", "rslora", "adalora"])
def test_the_scale_is_peft_s_to_the_last_digit(made, case):
    config = json.loads((made / case / "adapter" / "adapter_config.json").read_text())
    divisor = config["init_r"] + 1e-5 if case == "adalora" else config["r"] ** (0.5 if case == "rslora" else 1)
    _, description = read_peft(made / case / "adapter")
    assert {info["scale"] for info in description["modules"].values()} == {config["lora_alpha"] / divisor}


def test_an_adaptive_run_goes_on_from_peft_s_adalora(made):
    model, inputs = base(made, "adalora")
    adapters = adarank.from_peft(model, made / "adalora" / "adapter")
    n = len(adapters)
    schedule = adarank.schedules.cubic(initial=5 * n, final=2 * n, t_i=1, t_f=2, total=8, interval=1)
    controller = adarank.RankController(adapters, score=adarank.scores.adalora(), schedule=schedule)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    controller.attach(optimizer)
    for _ in range(8):
        model(**inputs, labels=torch.tensor([0, 1, 2])).loss.backward()
        controller.after_backward()
        optimizer.step()
        optimizer.zero_grad()
    assert sum(adarank.ranks(model).values()) == 2 * n


@pytest.mark.parametrize(
    "case", ["patterns", "rslora", "head", "embedding", "conv2d", "adalora_pruned", "dora", "dora_conv2d"]
)
def test_there_and_back_again(made, case, tmp_path):
    model, inputs = base(made, case)
    adarank.from_peft(model, made / case / "adapter")
    adarank.to_peft(model, tmp_path)
    again, _ = base(made, case)
    adarank.from_peft(again, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits, rtol=1e-5, atol=1e-6)


def refused(model, folder) -> str:
    before = {n: p.clone() for n, p in model.state_dict().items()}
    with pytest.raises(SettingError) as error:
        adarank.from_peft(model, folder)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("biases", "bias='all'"),
        ("pissa", "init_lora_weights='pissa'"),
        ("loha", "peft_type must be one of LORA, ADALORA (got 'LOHA')"),
    ],
)
def test_what_is_no_plain_adapter_is_refused_by_its_setting(made, case, message):
    assert message in refused(base(made, "lora")[0], made / case / "adapter")


@pytest.fixture
def copied(made, tmp_path):
    """(folder, rewrite): a copy of PEFT's plain adapter, and what changes its two files."""
    folder = shutil.copytree(made / "lora" / "adapter", tmp_path / "adapter")

    def rewrite(tensors=None, **settings):
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config | settings))
        if tensors is not None:
            weights = folder / "adapter_model.safetensors"
            save_file(tensors({k: v.contiguous() for k, v in load_file(weights).items()}), weights)

    return folder, rewrite


def test_another_base_is_refused_with_the_shapes_named(made, copied):
    config = transformers.BertConfig.from_pretrained(made / "lora" / "base")
    config.hidden_size = 16
    other = transformers.BertForSequenceClassification(config)
    assert "bert.encoder.layer.0.attention.self.query is 32 → 32 there, 16 → 16 here" in refused(other, copied[0])
    gpt2, _ = base(made, "conv1d")
    assert "it adapts bert.encoder.layer.0" in refused(gpt2, copied[0])


def test_pickles_are_never_read(made, copied):
    folder, _ = copied
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'touch " + str(folder / "ran").encode() + b"'\ntR.")
    message = refused(base(made, "lora")[0], folder)
    assert "holds no adapter_model.safetensors; adapter_model.bin may be a pickle" in message
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 5}, "has rank 4 in one file, 5 in the other"),
        ({"lora_alpha": "much"}, "gives no scale"),
        ({"lora_alpha": -1}, "gives no scale above 0"),
        ({"rank_pattern": {"(": 3}}, "not a map of regular expressions"),
        ({"lora_dropout": 2.0}, "lora_dropout must be at least 0 and less than 1 (got 2.0)"),
        ({"a_setting_of_tomorrow": 3}, "a_setting_of_tomorrow=3"),
        ({"layer_replication": [[0, 1]]}, "layer_replication="),
    ],
)
def test_settings_that_do_not_fit_are_refused(made, copied, settings, message):
    folder, rewrite = copied
    rewrite(**settings)
    assert message in refused(base(made, "lora")[0], folder)


def test_keys_of_patterns_that_match_nothing_are_reported_with_near_names(made, copied):
    folder, rewrite = copied
    rewrite(rank_pattern={"layer.0.*query": 4, "attention.self.qury": 2}, alpha_pattern={"valu": 3})
    model, _ = base(made, "lora")
    with pytest.warns(UserWarning, match="matches no module") as told:
        adarank.from_peft(model, folder)
    first, second = (str(warning.message) for warning in told)
    assert "the key 'attention.self.qury' of rank_pattern matches no module of the adapter" in first
    assert "similar names: bert.encoder.layer.1.attention.self.query" in first
    assert "the key 'valu' of alpha_pattern" in second
    assert second.endswith("similar names: value")
    assert {"query", "value"} <= {name.rpartition(".")[2] for name in adarank.ranks(model)}


def test_keys_of_adalora_s_pattern_that_match_nothing_are_reported(made, tmp_path):
    folder = shutil.copytree(made / "adalora_pruned" / "adapter", tmp_path / "adapter")
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text())
    config["rank_pattern"]["bert.encoder.layer.7.attention.self.query.lora_E"] = [True]
    file.write_text(json.dumps(config))
    with pytest.warns(
        UserWarning, match=r"layer\.7\.attention\.self\.query\.lora_E' of rank_pattern matches no module"
    ):
        adarank.from_peft(base(made, "adalora_pruned")[0], folder)


def test_tensors_that_do_not_belong_are_refused(made, copied):
    folder, rewrite = copied
    query = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"
    rewrite(lambda found: found | {query: torch.zeros(4, 8)})
    assert "query is 32 → 32 there" not in (message := refused(base(made, "lora")[0], folder))
    assert "bert.encoder.layer.0.attention.self.query is 8 → 32 there, 32 → 32 here" in message
    rewrite(lambda found: found | {query: torch.zeros(3, 32)})
    assert "factors of bert.encoder.layer.0.attention.self.query do not fit" in refused(base(made, "lora")[0], folder)
    rewrite(lambda found: found | {query: torch.zeros(4, 32), "base_model.model.classifier.bias": torch.zeros(3)})
    assert "contains classifier.bias, which is neither a LoRA factor nor in modules_to_save" in refused(
        base(made, "lora")[0], folder
    )


def test_a_changed_copy_of_an_embedding_is_refused(made):
    model, _ = base(made, "embedding")
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[3, 0] += 1
    assert "its copy of bert.embeddings.word_embeddings.weight differs" in refused(
        model, made / "embedding" / "adapter"
    )


def test_a_head_with_buffers_comes_back(tmp_path):
    """They were taken for parameters, which ended in a KeyError in the middle of loading."""
    head = torch.nn.Sequential(torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2))
    base = torch.nn.ModuleDict({"fc": torch.nn.Linear(8, 8), "head": head})
    model = copy.deepcopy(base)
    torch.nn.init.normal_(adarank.adapt(model, "lora", rank=2, targets=["fc"], train=["head"])["fc"].P)
    model["head"](torch.randn(16, 8))
    adarank.to_peft(model, tmp_path)
    adarank.from_peft(base, tmp_path)
    state = model["head"].state_dict()
    assert all(torch.equal(value, state[name]) for name, value in base["head"].state_dict().items())
    assert [n for n, p in base.named_parameters() if p.requires_grad] == [
        n for n, p in model.named_parameters() if p.requires_grad
    ]
