import json
from pathlib import Path

import pytest
import torch

from adarank.errors import SettingError
from adarank.harness.data.task_types import TASK_TYPES
from adarank.harness.models import hub, local, tiny


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
        SettingError, match=r"^model\.head_dropout must be null for model=tiny_llama \(llama\), .* \(got 0\.1\)$"
    ):
        tiny("llama", width=32, head_dropout=0.1).build(2)
    with pytest.raises(
        SettingError, match=r"^model\.head_dropout must be from 0 up to 1, or null for .* \(got 1\.5\)$"
    ):
        tiny("bert", width=32, head_dropout=1.5).build(2)


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


@pytest.mark.parametrize("name", ["chat_template.jinja", "merges.txt", "spm.model", "tokenizer.model"])
def test_what_the_tokenizer_reads_is_part_of_a_local_folder_s_content(tmp_path, name):
    a, b = save(tmp_path / "a"), save(tmp_path / "b")
    (b / name).write_text("other")
    assert local(str(a)).fingerprint != local(str(b)).fingerprint


def test_a_local_model_gets_a_head_of_the_task_s_size(tmp_path):
    built = local(str(save(tmp_path / "a"))).build(5)
    out = built.model(**built.tokenizer(["good", "bad film"], padding=True, return_tensors="pt"))
    assert out.logits.shape == (2, 5)


def test_a_local_model_of_images_has_its_image_processor(tmp_path):
    images = TASK_TYPES["images"]
    built = tiny("vit", width=32, layers=1).build(3, images)
    for part in (built.model, built.image_processor):
        part.save_pretrained(tmp_path)
    plain = local(str(tmp_path))
    again = plain.build(5, images)
    assert (again.tokenizer, again.head) == (None, ["classifier"])
    assert again.processor.to_dict() == built.processor.to_dict()
    file = tmp_path / "preprocessor_config.json"
    file.write_text(file.read_text().replace("0.5", "0.25"))
    assert local(str(tmp_path)).fingerprint != plain.fingerprint  # other pixels
    file.unlink()
    with pytest.raises(SettingError, match=r"^the model in .* could not be loaded \(.*preprocessor"):
        local(str(tmp_path)).build(5, images)


def test_an_encoder_without_a_pooler_trains_the_fresh_one(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = save(tmp_path / "a")
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "pooler" not in k}, folder / "model.safetensors", {"format": "pt"})
    assert "bert.pooler.dense" in local(str(folder)).build(2).head


@pytest.mark.parametrize(
    ("missing", "named"), [("config.json", "config.json"), ("model.safetensors", ".safetensors weights")]
)
def test_an_incomplete_folder_is_refused(tmp_path, missing, named):
    folder = save(tmp_path / "a")
    (folder / missing).unlink()
    with pytest.raises(SettingError, match=rf"^model\.path must be a folder .* has no {named}; pickles are not loaded"):
        local(str(folder))


def published(folder: Path, shards: int = 0) -> Path:
    """A DeBERTa as microsoft/deberta-v3-base is published: fp16 weights in pytorch_model.bin alone, no dtype in the
    config, no head, and weights of the pretraining heads. shards: files that they are spread over."""
    torch.manual_seed(0)
    built = tiny("deberta_v2", width=32, layers=1).build(3)
    for part in (built.model.config, built.tokenizer):
        part.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    for key in ("dtype", "architectures", "id2label", "label2id"):
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config))
    held = {name: value.half() for name, value in built.model.state_dict().items() if name.startswith("deberta.")}
    held["lm_predictions.lm_head.bias"] = torch.zeros(7, dtype=torch.float16)
    if not shards:
        torch.save(held, folder / "pytorch_model.bin")
        return folder
    names, files = list(held), [f"pytorch_model-{i + 1:05}-of-{shards:05}.bin" for i in range(shards)]
    for i, file in enumerate(files):
        torch.save({name: held[name] for name in names[i::shards]}, folder / file)
    index = {"metadata": {}, "weight_map": {name: files[i % shards] for i, name in enumerate(names)}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("shards", [0, 2])
def test_a_folder_with_pickles_alone_is_read_where_that_is_allowed(tmp_path, shards):
    folder = published(tmp_path / "deberta", shards)
    with pytest.raises(SettingError) as error:
        local(str(folder))
    file = "pytorch_model-00001-of-00002.bin" if shards else "pytorch_model.bin"
    assert str(error.value) == (
        f"model.path={folder} has its weights only as a pickle, {file}, which could run code when loaded; set "
        "model.allow_bin=true to read only tensors from it (torch.load with weights_only=True), or use a copy or a "
        "revision that has safetensors"
    )
    base = local(str(folder), allow_bin=True)
    assert (base.architecture, base.stored) == ("deberta-v2", "fp16")
    torch.manual_seed(0)
    expected = tiny("deberta_v2", width=32, layers=1).build(3).model.state_dict()
    built = base.build(2)
    assert "classifier" in built.head
    found = {name: value for name, value in built.model.state_dict().items() if name.startswith("deberta.")}
    assert found
    for name, value in found.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, expected[name].half().float()), name


def test_a_hub_model_with_pickles_alone_is_read_where_that_is_allowed(tmp_path):
    """The hub's loader on a folder, which it takes as well as a name."""
    folder = published(tmp_path / "deberta")
    with pytest.raises(
        SettingError, match=rf"^model\.name={folder} has its weights only as a pickle, pytorch_model\.bin"
    ):
        hub(str(folder)).build(2)
    found = hub(str(folder), allow_bin=True).build(2).model.state_dict()
    expected = local(str(folder), allow_bin=True).build(2).model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.items() if name.startswith("deberta."))


def test_a_folder_given_as_a_name_is_known_by_its_content(tmp_path):
    """It was known by its path, so that new weights in it took the runs of the old ones for theirs."""
    folder = save(tmp_path / "a")
    before = hub(str(folder)).fingerprint
    assert before == local(str(folder)).fingerprint
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes() + b" ")
    assert hub(str(folder)).fingerprint != before


def test_safetensors_win_over_pickles(tmp_path):
    folder = save(tmp_path / "a")
    before = local(str(folder)).fingerprint
    torch.save({"bert.encoder.layer.0.output.dense.weight": torch.ones(1)}, folder / "pytorch_model.bin")
    for allow_bin in (False, True):
        base = local(str(folder), allow_bin=allow_bin)
        assert base.fingerprint == before
        assert base.build(3).head == ["classifier"]


class Hostile:
    """Makes a file where it is unpickled without care."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.parametrize("hidden", [False, True])
def test_a_hostile_pickle_runs_no_code(tmp_path, hidden):
    folder, mark = published(tmp_path / "deberta"), tmp_path / "ran"
    held = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save({**held, "more": Hostile(mark)} if hidden else Hostile(mark), folder / "pytorch_model.bin")
    for load in (local, lambda path, **more: hub(path, **more).build(2)):
        with pytest.raises(SettingError, match=r"could not be loaded, because its pickle holds more than tensors"):
            load(str(folder), allow_bin=True)
    assert not mark.exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert mark.exists()  # so it would have


@pytest.mark.parametrize("content", [b"", b"PK not an archive", "cut"])
def test_a_damaged_pickle_is_refused(tmp_path, content):
    file = published(tmp_path / "deberta") / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:2000] if content == "cut" else content)
    with pytest.raises(SettingError, match=r"pytorch_model\.bin could not be loaded, because its pickle .* is damaged"):
        local(str(file.parent), allow_bin=True)


def test_a_hub_model_that_cannot_be_had_says_what_was_tried():
    with pytest.raises(SettingError) as error:
        hub("nobody/nothing-at-all")
    assert "model.name=nobody/nothing-at-all could not be loaded from the Hugging Face hub or its cache" in str(
        error.value
    )
    assert "model=local model.path=FOLDER" in str(error.value)


def test_an_unknown_tiny_architecture():
    with pytest.raises(SettingError, match=r"model\.arch must be one of bert, .* \(got mamba\)"):
        tiny("mamba")
