from pathlib import Path

import pytest
import torch

import adarank
from adarank.errors import SettingError
from adarank.harness.models import Base, hub, local, minilm_l6, resolve_targets, tiny

SHORT = ("qv", "qkv", "attention", "mlp", "all")


@pytest.mark.parametrize(
    ("architecture", "counts"),
    [
        ("bert", (2, 3, 4, 2, 6)),
        ("roberta", (2, 3, 4, 2, 6)),
        ("distilbert", (2, 3, 4, 2, 6)),
        ("deberta_v2", (2, 3, 4, 2, 6)),
        ("llama", (2, 3, 4, 3, 7)),
        ("t5", (6, 9, 12, 4, 16)),
        ("bart", (6, 9, 12, 4, 16)),
        ("gpt2", (None, 1, 2, 2, 4)),
        ("gpt_neox", (None, 1, 2, 2, 4)),
        ("modernbert", (None, 1, 2, 2, 4)),
    ],
)
def test_shorthands_reach_the_right_modules(architecture, counts):
    base = tiny(architecture, width=32, layers=1)
    for shorthand, count in zip(SHORT, counts, strict=True):
        if count is None:
            with pytest.raises(SettingError, match=r"targets=qv: .* q and v lie in one matrix, \w+, .* targets=qkv"):
                resolve_targets(base, shorthand, None)
            continue
        built = base.build(2)
        found = adarank.adapt(built.model, rank=1, targets=resolve_targets(base, shorthand, None))
        assert len(found) == count, (shorthand, list(found))


@pytest.mark.parametrize(
    ("kind", "counts"),
    [("vit", (2, 3, 4, 2, 6)), ("opt", (2, 3, 4, 2, 6)), ("phi", (2, 3, 4, 2, 6)), ("phi3", (None, 1, 2, 2, 4))],
)
def test_shorthands_of_architectures_without_a_tiny_model(kind, counts):
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    sizes |= {"num_key_value_heads": 2, "ffn_dim": 64, "word_embed_proj_dim": 32, "vocab_size": 50, "pad_token_id": 0}
    known = transformers.AutoConfig.for_model(kind)
    config = transformers.AutoConfig.for_model(kind, **{k: v for k, v in sizes.items() if hasattr(known, k)})
    base = Base(kind, "f", kind, lambda _: None)
    for shorthand, count in zip(SHORT, counts, strict=True):
        if count is not None:
            model = transformers.AutoModel.from_config(config)
            found = adarank.adapt(model, rank=1, targets=resolve_targets(base, shorthand, None))
            assert len(found) == count, (shorthand, list(found))
        if shorthand == "all":
            assert list(found) == adarank.adapters.inject.find_targets(
                transformers.AutoModel.from_config(config), "all-linear"
            )


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_encoder_decoders_pool_by_the_end_token_of_rows_of_any_length(architecture):
    built = tiny(architecture, width=32, layers=1).build(3)
    built.model.eval()
    rows = ["good", "a much longer film", ""]
    together = built.model(**built.tokenizer(rows, ["pair"] * 3, padding=True, return_tensors="pt")).logits
    alone = [built.model(**built.tokenizer([row], ["pair"], return_tensors="pt")).logits for row in rows]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "dropout"),
    [
        ("bert", lambda model: model.dropout),
        ("roberta", lambda model: model.classifier.dropout),
        ("distilbert", lambda model: model.dropout),
        ("deberta_v2", lambda model: model.dropout),
        ("t5", lambda model: model.classification_head.dropout),
        ("bart", lambda model: model.classification_head.dropout),
        ("modernbert", lambda model: model.drop),
    ],
)
def test_the_dropout_before_the_head(architecture, dropout):
    plain, changed = tiny(architecture, width=32, layers=1), tiny(architecture, width=32, layers=1, head_dropout=0.35)
    assert dropout(changed.build(2).model).p == 0.35
    assert dropout(plain.build(2).model).p != 0.35
    assert changed.fingerprint == f"{plain.fingerprint}+head_dropout=0.35"


def test_the_dropout_of_a_saved_model_s_head(tmp_path):
    built = tiny("deberta_v2", width=32, layers=1).build(2)
    for part in (built.model, built.tokenizer):
        part.save_pretrained(tmp_path)
    plain, changed = local(str(tmp_path)), local(str(tmp_path), head_dropout=0.35)
    assert (changed.build(2).model.dropout.p, changed.build(3).model.config.num_labels) == (0.35, 3)
    assert changed.fingerprint == f"{plain.fingerprint}+head_dropout=0.35"


def test_a_dropout_that_is_not_there_is_refused():
    with pytest.raises(
        SettingError, match=r"^model\.head_dropout=0\.1: model=tiny_llama \(llama\) has no dropout before"
    ):
        tiny("llama", width=32, head_dropout=0.1).build(2)
    with pytest.raises(SettingError, match=r"^model\.head_dropout=1\.5 is out of range; valid: from 0 up to 1"):
        tiny("bert", width=32, head_dropout=1.5).build(2)


def test_a_map_in_the_yaml_overrules_and_unknown_architectures_say_what_to_do():
    base = Base("x", "f", "bert", lambda _: None, {"qv": ["a", "b"]})
    assert resolve_targets(base, "qv", None) == ["a", "b"]
    with pytest.raises(SettingError, match=r"targets=all is not in model\.targets; valid: qv"):
        resolve_targets(base, "all", None)
    odd = Base("x", "f", "mamba", lambda _: None)
    assert resolve_targets(odd, "all", None) == "all-linear"
    assert resolve_targets(odd, "modules", ["in_proj"]) == ["in_proj"]
    with pytest.raises(SettingError, match="has no meaning yet for the architecture mamba"):
        resolve_targets(odd, "qv", None)


def test_minilm_has_36_linears_in_its_blocks_and_a_fresh_head():
    base = minilm_l6()
    built = base.build(2)
    assert built.head == ["classifier"]
    assert sum(p.numel() for n, p in built.model.named_parameters() if "classifier" not in n) == 22_713_216
    assert len(adarank.adapt(built.model, rank=1, targets="all-linear")) == 36
    assert base.fingerprint == minilm_l6().fingerprint


def save(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    built = tiny("bert", width=32, layers=1).build(3)
    built.model.save_pretrained(folder)
    built.tokenizer.save_pretrained(folder)
    return folder


def test_a_local_folder_is_known_by_its_content_and_not_by_its_path(tmp_path):
    a, b, c = save(tmp_path / "a"), save(tmp_path / "b"), save(tmp_path / "c", seed=1)
    found = [local(str(p)).fingerprint for p in (a, b, c)]
    assert found[0] == found[1] != found[2]


def test_a_local_model_gets_a_head_of_the_task_s_size(tmp_path):
    built = local(str(save(tmp_path / "a"))).build(5)
    out = built.model(**built.tokenizer(["good", "bad film"], padding=True, return_tensors="pt"))
    assert out.logits.shape == (2, 5)


def test_an_encoder_without_a_pooler_trains_the_fresh_one(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = save(tmp_path / "a")
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "pooler" not in k}, folder / "model.safetensors", {"format": "pt"})
    assert "bert.pooler.dense" in local(str(folder)).build(2).head


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_an_incomplete_folder_is_refused(tmp_path, missing):
    folder = save(tmp_path / "a")
    (folder / missing).unlink()
    with pytest.raises(SettingError, match="valid: "):
        local(str(folder))


def test_a_hub_model_that_cannot_be_had_says_what_was_tried():
    with pytest.raises(SettingError) as error:
        hub("nobody/nothing-at-all")
    assert "model.name=nobody/nothing-at-all could not be loaded from the Hugging Face hub or its cache" in str(
        error.value
    )
    assert "model=local model.path=FOLDER" in str(error.value)


def test_an_unknown_tiny_architecture():
    with pytest.raises(SettingError, match=r"model\.arch=mamba is not known; valid: bert"):
        tiny("mamba")
