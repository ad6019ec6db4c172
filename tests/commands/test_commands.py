"""inspect, merge, export and compress on adapter folders, as the command line calls them."""

import ast
import copy
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import adarank
from adarank.adapters.spectrum import effective_rank, stable_rank
from adarank.cli import main
from adarank.harness.models import byte_tokenizer
from tests.integrations.models import bert, gpt2, llama, vit

IDS = {"input_ids": torch.tensor([[2, 7, 9, 4], [5, 3, 8, 6]])}
LOAD = """
import sys, torch, transformers
from pathlib import Path
ids = torch.tensor([[2, 7, 9, 4], [5, 3, 8, 6]])
for folder in sys.argv[1:]:
    kind = getattr(transformers, transformers.AutoConfig.from_pretrained(folder).architectures[0])
    model, found = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(found.values()), found
    with torch.no_grad():
        (Path(folder) / "logits.txt").write_text(repr(model.eval()(input_ids=ids).logits.tolist()))
    if "by_hand" not in folder:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        chat = tokenizer.apply_chat_template([{"role": "user", "content": "ab <new>"}], tokenize=False)
        (Path(folder) / "words.txt").write_text(repr([chat, tokenizer(chat)["input_ids"], model.config.id2label]))
assert "adarank" not in sys.modules
"""


@torch.no_grad()
def adapted(model, **options):
    torch.manual_seed(1)
    options = {"rank": 4, "targets": ["query", "value"], "train": ["classifier"], **options}
    adapters = adarank.adapt(model.eval(), **options)
    for i, a in enumerate(adapters.values()):
        for factor in (a.Q, a.lam, a.P):
            if factor.requires_grad:
                factor.add_(0.3 * torch.randn_like(factor))
        a.mask[:i] = False
    for name in options["train"]:
        model.get_submodule(name).weight.add_(0.3)
    return adapters


@pytest.fixture
def folders(tmp_path):
    """base/, adapter/ and a finished run's folder run/, with the adapted model."""
    torch.manual_seed(0)
    bert().save_pretrained(tmp_path / "base")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}!"
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(tmp_path / "base")
    model = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "base")
    adapted(model)
    adarank.save_adapter(model, tmp_path / "adapter")
    shutil.copytree(tmp_path / "adapter", tmp_path / "run" / "adapter")
    summary = {"method": "adalora", "task": "rte", "seed": 3, "metric": {"name": "accuracy", "test": 0.625}}
    summary["labels"] = ["bad", "fair", "good"]
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary))
    return tmp_path, model


def command(capsys, *words):
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def refusal(capsys, *words):
    assert main([str(word) for word in words]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    return message


def logits(model):
    with torch.no_grad():
        return model.eval()(**IDS).logits


def test_inspect_prints_ranks_parameters_and_spectrum(folders, capsys):
    folder, model = folders
    out = command(capsys, "inspect", folder / "run")
    assert "trained by method=adalora, task=rte, seed=3; accuracy 0.6250" in out
    assert f"base BertForSequenceClassification {folder / 'base'}" in out
    assert "4 modules, 0 of rank 0, mean rank 2.50, 650 parameters" in out  # 10 triplets of 32 + 32 + 1
    assert "also trained: classifier (99 parameters)" in out
    for name, adapter in adarank.adapters.lowrank.adapters_of(model).items():
        cells = next(line.split() for line in out.splitlines() if line.startswith(name))
        sigma = np.linalg.svd(adapter.delta().detach().double().numpy(), compute_uv=False)
        sigma = sigma[: adarank.ranks(model)[name]]
        share = sigma / sigma.sum()
        expected = [np.sqrt((sigma**2).sum()), sigma[0], sigma[-1], np.exp(-(share * np.log(share)).sum())]
        expected.append((sigma**2).sum() / sigma[0] ** 2)
        assert cells[1:3] == [str(len(sigma)), str(65 * len(sigma))]
        assert np.allclose([float(c) for c in cells[3:8]], expected, rtol=1e-3, atol=6e-3)
        assert len(cells[8]) == len(sigma)
        assert cells[8][0] == "█"


def test_effective_and_stable_rank_of_known_spectra():
    even = torch.full((5,), 2.0)
    assert effective_rank(even) == pytest.approx(5.0)
    assert stable_rank(even) == pytest.approx(5.0)
    one = torch.tensor([3.0, 1e-9])
    assert stable_rank(one) == pytest.approx(1.0)
    assert effective_rank(one) == pytest.approx(1.0, abs=1e-6)
    assert effective_rank(even[:0]) == stable_rank(even[:0]) == 0.0


def test_inspect_shows_other_kinds_too(tmp_path, capsys):
    model = bert()
    adarank.bottlenecks(model, ["output.dense"], 2, ["query"])
    adarank.save_adapter(model, tmp_path / "bottleneck")
    out = command(capsys, "inspect", tmp_path / "bottleneck")
    width = adarank.adapters.bottleneck.bottlenecks_of(model)["bert.encoder.layer.0.output.dense"].width
    assert f"{width}" in next(line for line in out.splitlines() if line.startswith("bert.encoder.layer.0.output.dense"))
    model = bert()
    adarank.bitfit(model)
    adarank.save_adapter(model, tmp_path / "bitfit")
    assert "kind none" in command(capsys, "inspect", tmp_path / "bitfit")
    model = bert()
    adapted(model, init="pissa")
    adarank.save_adapter(model, tmp_path / "pissa")
    out = command(capsys, "inspect", tmp_path / "pissa")
    assert out.count("█") >= 4
    assert "mean rank 2.50" in out


def test_merged_models_load_without_adarank_to_the_same_logits(folders, capsys):
    folder, model = folders
    adarank.to_peft(model, folder / "peft")
    expected = logits(model)
    says = command(capsys, "merge", folder / "run", folder / "by_name")
    assert "with 4 adapters merged" in says
    change, largest = map(float, re.search(r"by at most (\S+) \(the largest is (\S+)\)$", says.strip()).groups())
    assert 0 <= change <= 1e-5 * largest  # 0 where the CPU rounds both alike
    assert largest > 0
    shutil.copytree(folder / "base", folder / "elsewhere")
    command(capsys, "merge", folder / "adapter", folder / "by_option", "--base", folder / "elsewhere")
    command(capsys, "merge", folder / "peft", folder / "of_peft")
    adarank.merge(model)
    model.save_pretrained(folder / "by_hand")
    adarank.unmerge(model)
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
    names = ("by_name", "by_option", "of_peft", "by_hand")
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *(folder / name for name in names)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    for name in names:
        there = torch.tensor(json.loads((folder / name / "logits.txt").read_text()))
        assert (there - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert not any(".base" in key or "lora" in key for key in load_file(folder / name / "model.safetensors"))
        if name != "by_hand":
            chat, ids, classes = ast.literal_eval((folder / name / "words.txt").read_text())
            assert (chat, len(ids), ids[-3:]) == ("ab <new>!", 7, [260, ids[-2], 3])
            of_run = {0: "bad", 1: "fair", 2: "good"}
            assert classes == (of_run if name == "by_name" else {i: f"LABEL_{i}" for i in range(3)})


def test_a_merged_vision_model_has_its_image_processor(tmp_path, capsys):
    torch.manual_seed(0)
    vit().save_pretrained(tmp_path / "base")
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "base")
    model = transformers.ViTForImageClassification.from_pretrained(tmp_path / "base")
    adapted(model, targets=["q_proj"])
    adarank.save_adapter(model, tmp_path / "adapter")
    assert "On a probe input" in command(capsys, "merge", tmp_path / "adapter", tmp_path / "merged")
    loaded = transformers.AutoImageProcessor.from_pretrained(tmp_path / "merged")
    assert loaded.size == {"height": 16, "width": 16}
    again = transformers.ViTForImageClassification.from_pretrained(tmp_path / "merged").eval()
    pixels = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(again(pixels).logits, model(pixels).logits, rtol=1e-4, atol=1e-5)


def test_a_merged_causal_model_keeps_its_generation_config_and_the_padding_of_its_run(tmp_path, capsys):
    torch.manual_seed(0)
    base = llama()
    base.generation_config.update(do_sample=True, top_k=7)
    base.save_pretrained(tmp_path / "base")
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(tmp_path / "base")
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    adapted(model, targets=["q_proj"], train=[])
    adarank.save_adapter(model, tmp_path / "run" / "adapter")
    (tmp_path / "run" / "summary.json").write_text(json.dumps({"labels": None}))
    for source, pads in (("run/adapter", None), ("run", "[SEP]")):
        out = tmp_path / f"merged_{pads}"
        command(capsys, "merge", tmp_path / source, out)
        again = transformers.AutoModelForCausalLM.from_pretrained(out)
        assert (again.generation_config.do_sample, again.generation_config.top_k) == (True, 7)
        assert transformers.AutoTokenizer.from_pretrained(out).pad_token == pads
        assert again.config.pad_token_id == (None if pads is None else 3)


def test_export_equals_to_peft(folders, capsys):
    folder, model = folders
    adarank.to_peft(model, folder / "direct")
    out = command(capsys, "export", folder / "run", folder / "exported", "--format", "peft")
    assert "on 4 modules" in out
    assert "modules_to_save classifier" in out
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (folder / "exported" / name).read_bytes() == (folder / "direct" / name).read_bytes()
    assert f"(the largest {max(adarank.ranks(model).values())})" in out
    message = refusal(capsys, "export", folder / "run", folder / "uniform", "--format", "peft", "--uniform-rank")
    assert "use adarank.merge" in message
    assert not (folder / "uniform").exists()


def test_a_uniform_export_prints_the_largest_rank(tmp_path, capsys):
    model = gpt2()
    adapters = adapted(model, targets=["c_attn", "c_fc"], train=[])
    next(iter(adapters.values())).mask[1:] = False
    adarank.save_adapter(model, tmp_path / "adapter")
    largest = max(adarank.ranks(model).values())
    assert largest > 1
    out = command(capsys, "export", tmp_path / "adapter", tmp_path / "peft", "--format", "peft", "--uniform-rank")
    assert f"LoRA of rank {largest}, the largest of the adapter's ranks, on {len(adapters)} modules" in out
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["r"] == largest


@pytest.mark.parametrize("kind", ["svd", "lora"])
def test_compress_keeps_the_largest_singular_values_and_says_what_is_lost(tmp_path, capsys, kind):
    model = gpt2()
    adapters = adapted(model, adapter=kind, targets=["c_attn", "c_proj", "c_fc"], train=[])
    adarank.save_adapter(model, tmp_path / "adapter")
    adarank.to_peft(model, tmp_path / "peft")
    dense = {n: a.delta().detach().double().numpy() for n, a in adapters.items()}
    every = np.sort(np.concatenate([np.linalg.svd(d, compute_uv=False) for d in dense.values()]))[::-1]
    lost = np.sqrt((every[4:] ** 2).sum() / (every**2).sum())
    command(capsys, "inspect", tmp_path / "peft")
    for source in ("adapter", "peft"):
        out = command(capsys, "compress", tmp_path / source, tmp_path / f"small_{source}", "--budget", 1)
        assert f"4 of {sum(adarank.ranks(model).values())} triplets kept; lost {lost:.2%}" in out
        again = gpt2()
        (adarank.load_adapter if source == "adapter" else adarank.from_peft)(again, tmp_path / f"small_{source}")
        left = adarank.adapters.lowrank.adapters_of(again)
        assert sum(adarank.ranks(again).values()) == 4
        found = sum(
            ((dense[n] - left[n].delta().detach().numpy()) ** 2).sum() if n in left else (d**2).sum()
            for n, d in dense.items()
        )
        assert np.sqrt(found / (every**2).sum()) == pytest.approx(lost, rel=1e-4)


def test_compress_keeps_the_buffers_that_training_changed(tmp_path, capsys):
    """The result could not be loaded, because the description still named them."""
    base = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8))
    model = copy.deepcopy(base)
    torch.nn.init.normal_(adarank.adapt(model, "lora", rank=4, targets=["0"])["0"].P)
    model(torch.randn(16, 8))
    adarank.save_adapter(model, tmp_path / "adapter")
    command(capsys, "compress", tmp_path / "adapter", tmp_path / "small", "--budget", 2)
    adarank.load_adapter(base, tmp_path / "small")
    assert torch.equal(base[1].running_mean, model[1].running_mean)


def test_compress_cuts_to_a_prefix_in_either_format(tmp_path, capsys):
    base = gpt2()
    model = copy.deepcopy(base)
    adapters = adapted(model, adapter="matryoshka", targets=["c_attn", "c_fc"], train=[])
    held = sum(adarank.ranks(model).values())
    adarank.save_adapter(model, tmp_path / "adapter")
    out = command(capsys, "compress", tmp_path / "adapter", tmp_path / "small", "--prefix", 2)
    assert f"{2 * len(adapters)} of {held} triplets kept" in out
    assert "lost" not in out
    adarank.truncate(model, 2)
    command(capsys, "export", tmp_path / "small", tmp_path / "peft", "--format", "peft")
    for load, folder in ((adarank.load_adapter, "small"), (adarank.from_peft, "peft")):
        for name, a in load(copy.deepcopy(base), tmp_path / folder).items():
            torch.testing.assert_close(a.delta(), adapters[name].delta())
    for words in ((), ("--budget", 1, "--prefix", 1)):
        message = refusal(capsys, "compress", tmp_path / "adapter", tmp_path / "o", *words)
        assert "one of --budget N and --prefix R" in message


def test_nothing_is_overwritten_and_nothing_half_written_is_left(folders, capsys, monkeypatch):
    folder, _ = folders
    (folder / "there").mkdir()
    for words in (
        ("merge", folder / "run", folder / "there"),
        ("export", folder / "run", folder / "there", "--format", "peft"),
        ("compress", folder / "run", folder / "there", "--budget", 1),
    ):
        assert "already exists and is not overwritten" in refusal(capsys, *words)
    assert list((folder / "there").iterdir()) == []

    def fails(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("adarank.commands.export.write_files", fails)
    assert "No space left" in refusal(capsys, "export", folder / "run", folder / "new", "--format", "peft")
    assert sorted(p.name for p in folder.iterdir()) == ["adapter", "base", "run", "there"]


def test_what_cannot_be_used_is_said_in_a_sentence(folders, capsys):
    folder, _ = folders
    assert "is not a folder" in refusal(capsys, "inspect", folder / "nowhere")
    assert "holds no adapter" in refusal(capsys, "inspect", folder / "base")
    assert "(got 0)" in refusal(capsys, "compress", folder / "run", folder / "o", "--budget", 0)
    assert "cannot be loaded" in refusal(capsys, "merge", folder / "run", folder / "o", "--base", folder / "nowhere")
    torch.manual_seed(0)
    gpt2().save_pretrained(folder / "gpt2")
    assert "--base" in refusal(capsys, "merge", folder / "run", folder / "o", "--base", folder / "gpt2")
    config = transformers.BertConfig.from_pretrained(folder / "base")
    config.intermediate_size = 20
    transformers.BertForSequenceClassification(config).save_pretrained(folder / "other")
    config.hidden_size = 16
    transformers.BertForSequenceClassification(config).save_pretrained(folder / "narrow")
    message = refusal(capsys, "merge", folder / "run", folder / "o", "--base", folder / "narrow")
    assert "query is 32 → 32 there, 16 → 16 here" in message
    description = json.loads((folder / "adapter" / "adapter.json").read_text())
    description["base"]["name"] = None
    (folder / "adapter" / "adapter.json").write_text(json.dumps(description))
    assert "give --base" in refusal(capsys, "merge", folder / "adapter", folder / "o")
    model = bert()
    adarank.bottlenecks(model, ["output.dense"], 2, ["query"])
    adarank.save_adapter(model, folder / "bottleneck")
    for words in (("merge",), ("export", "--format", "peft"), ("compress", "--budget", 1)):
        message = refusal(capsys, words[0], folder / "bottleneck", folder / "o", *words[1:])
        assert "bottleneck" in message
    assert not (folder / "o").exists()


def test_the_help_is_for_people(capsys):
    for words in (["--help"], ["inspect", "--help"], ["merge", "--help"], ["export", "--help"], ["compress", "--help"]):
        with pytest.raises(SystemExit) as done:
            main(words)
        assert done.value.code == 0
        text = capsys.readouterr().out
        assert "usage: adarank" in text
        assert "==SUPPRESS==" not in text
        if len(words) == 2:
            assert "FOLDER" in text
            assert len(text) > 300


# --- folders made to do harm ---


def damage(folder, **tensors):
    path = folder / "adapter" / "adapter.safetensors"
    save_file({k: v.contiguous() for k, v in (load_file(path) | tensors).items()}, path)


def test_a_pickle_is_never_loaded(folders, capsys):
    folder, _ = folders
    (folder / "adapter" / "adapter.safetensors").rename(folder / "spare")
    bomb = b"cos\nsystem\n(S'touch " + str(folder / "ran").encode() + b"'\ntR."
    (folder / "adapter" / "pytorch_model.bin").write_bytes(bomb)
    assert "pytorch_model.bin may be a pickle" in refusal(capsys, "inspect", folder / "adapter")
    (folder / "adapter" / "adapter.safetensors").write_bytes(bomb)
    assert "is damaged" in refusal(capsys, "inspect", folder / "adapter")
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("shape", [[2**40, 2**20], [2**63, 2**63], [-1, 4]])
def test_a_shape_larger_than_the_file_is_refused_before_anything_is_allocated(folders, capsys, shape):
    folder, _ = folders
    header = json.dumps({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 16]}}).encode()
    raw = len(header).to_bytes(8, "little") + header + b"\0" * 16
    (folder / "adapter" / "adapter.safetensors").write_bytes(raw)
    assert "is damaged" in refusal(capsys, "inspect", folder / "adapter")
    (folder / "adapter" / "adapter.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    assert "is damaged" in refusal(capsys, "inspect", folder / "adapter")


def test_a_declared_rank_is_only_believed_with_its_tensors(folders, capsys):
    folder, _ = folders
    path = folder / "adapter" / "adapter.json"
    for part, value in (("rank", 10**12), ("in_features", 10**12), ("rank", "4"), ("scale", None), ("rank", True)):
        description = json.loads((folder / "run" / "adapter" / "adapter.json").read_text())
        next(iter(description["modules"].values()))[part] = value
        path.write_text(json.dumps(description))
        assert str(value) in refusal(capsys, "inspect", folder / "adapter")


def test_a_name_is_no_path(folders, capsys):
    folder, _ = folders
    description = json.loads((folder / "adapter" / "adapter.json").read_text())
    evil = "../../../../evil"
    first = next(iter(description["modules"]))
    description["modules"] = {evil if n == first else n: info for n, info in description["modules"].items()}
    tensors = {n.replace(first, evil): t for n, t in load_file(folder / "adapter" / "adapter.safetensors").items()}
    save_file(tensors, folder / "adapter" / "adapter.safetensors")
    (folder / "adapter" / "adapter.json").write_text(json.dumps(description))
    before = sorted(str(p) for p in folder.parent.rglob("*"))
    with pytest.raises(adarank.SettingError, match=r"it adapts \.\./\.\./\.\./\.\./evil"):
        adarank.load_adapter(bert(), folder / "adapter")
    assert "evil" in command(capsys, "inspect", folder / "adapter")  # a name like any other
    command(capsys, "export", folder / "adapter", folder / "exported", "--format", "peft")
    new = {str(p) for p in folder.parent.rglob("*")} - set(before)
    exported = folder / "exported"
    assert new == {str(exported), *(str(exported / n) for n in ("adapter_config.json", "adapter_model.safetensors"))}


def test_names_and_numbers_that_do_harm_when_shown_or_used_are_refused(folders, capsys):
    folder, _ = folders
    first = next(iter(load_file(folder / "adapter" / "adapter.safetensors")))
    good = load_file(folder / "adapter" / "adapter.safetensors")[first]
    damage(folder, **{first: good * float("nan")})
    assert "not finite" in refusal(capsys, "inspect", folder / "adapter")
    damage(folder, **{first: good, "\x1b[2Jx": torch.zeros(2)})
    description = json.loads((folder / "adapter" / "adapter.json").read_text())
    description["trained"]["\x1b[2Jx"] = [2]
    (folder / "adapter" / "adapter.json").write_text(json.dumps(description))
    message = refusal(capsys, "inspect", folder / "adapter")
    assert "cannot be a module name" in message
    assert "\x1b" not in message
    (folder / "adapter" / "adapter.json").write_text("[" * 100_000)
    assert "is damaged" in refusal(capsys, "inspect", folder / "adapter")
