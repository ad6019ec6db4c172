"""What trains is fp32 at least, however the checkpoint is stored; how the frozen weights are stored."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForSequenceClassification

import adarank
from adarank.errors import SettingError
from adarank.harness.device import choose_dtype
from adarank.harness.models import byte_tokenizer, local, tiny
from adarank.harness.run.prepare import store
from adarank.probe.reload import load_trained_weights, open_run
from tests.experiments.test_run import inside
from tests.representatives import representatives

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BF16 = ("model.dtype=bf16", "train.precision=bf16")


def save(folder: Path, dtype: torch.dtype, family: str = "bert", through: torch.dtype | None = None) -> str:
    """A small model in `folder`, rounded to `through` first, in `dtype`."""
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    sizes |= {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    if family == "bert":
        model = BertModel(BertConfig(**sizes))
    else:  # with a head of its own
        model = LlamaForSequenceClassification(LlamaConfig(**sizes, num_labels=2))
    model.to(through or dtype).to(dtype).save_pretrained(folder)
    return f"model.path={folder}"


def run(tmp_path: Path, name: str, *words: str) -> Path:
    """The folder of a finished tiny run."""
    inside(
        "tiny=true", "train.steps=6", "train.eval_every=3", "rank=2", "model=local", *words, f"out={tmp_path / name}"
    )
    (folder,) = [path for path in (tmp_path / name).iterdir() if path.is_dir()]
    return folder


def dtypes(folder: Path) -> dict[str, str | None]:
    return json.loads((folder / "summary.json").read_text())["dtype"]


def results(folder: Path) -> list[dict]:
    """What was logged, without times."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("time")} for row in rows]


@pytest.mark.parametrize("method", representatives(["full", "adalora", "lora", "bitfit", "houlsby"], 1))
def test_a_checkpoint_trains_alike_in_fp32_and_in_bf16_files(tmp_path, method):
    where = {
        dtype: run(tmp_path, dtype, f"method={method}", save(tmp_path / f"m-{dtype}", held, through=torch.bfloat16))
        for dtype, held in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    }
    assert results(where["fp32"]) == results(where["bf16"])
    for folder in where.values():
        assert dtypes(folder) == {"base": None if method == "full" else "fp32", "trained": "fp32", "compute": "fp32"}
    (kept,) = {file.relative_to(where["fp32"]) for file in where["fp32"].rglob("*.safetensors")}
    one, other = (load_file(folder / kept) for folder in where.values())
    assert all(torch.equal(one[name], other[name]) for name in one | other)


def test_an_fp16_checkpoint_is_fine_tuned_in_fp32(tmp_path):
    folder = run(tmp_path, "out", "method=full", save(tmp_path / "m", torch.float16))
    assert {t.dtype for t in load_file(folder / "checkpoint/model.safetensors").values() if t.is_floating_point()} == {
        torch.float32
    }
    model = load_trained(folder)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def load_trained(folder: Path) -> torch.nn.Module:
    opened = open_run(folder)
    load_trained_weights(opened)
    return opened.model


@pytest.mark.parametrize(
    "method", ["lora", *(pytest.param(m, marks=pytest.mark.slow) for m in ("full", "bitfit", "houlsby", "head"))]
)
def test_frozen_weights_in_bf16_and_trained_ones_in_fp32(tmp_path, method, safe_bf16):
    folder = run(tmp_path, "out", f"method={method}", *BF16, save(tmp_path / "m", torch.bfloat16))
    base = None if method == "full" else "bf16"
    assert dtypes(folder) == {"base": base, "trained": "fp32", "compute": "bf16"}
    model = load_trained(folder)
    trained = {p.dtype for p in model.parameters() if p.requires_grad}
    assert trained == {torch.float32}
    if method == "bitfit":  # a saved bias is not rounded by loading it again
        saved = load_file(folder / "adapter" / "adapter.safetensors")
        held = dict(model.named_parameters())
        assert all(torch.equal(held[name], tensor) for name, tensor in saved.items())


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_head_is_the_same_whatever_the_base_is_stored_in(tmp_path, family):
    heads = []
    for dtype in ("fp32", "bf16"):
        base = local(save(tmp_path / "m", torch.bfloat16, family).partition("=")[2])
        assert base.stored == "bf16"
        torch.manual_seed(3)
        built = base.build(3, dtype=dtype)
        weights = {name: p for name, p in built.model.named_parameters() if name.startswith(tuple(built.head))}
        assert {p.dtype for p in weights.values()} == {torch.float32}
        heads.append(weights)
    assert heads[0].keys() == heads[1].keys()
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])


def test_a_head_of_the_checkpoint_is_fp32_and_unchanged(tmp_path):
    built = local(save(tmp_path / "m", torch.bfloat16, "llama").partition("=")[2]).build(2, dtype="bf16")
    saved = load_file(tmp_path / "m" / "model.safetensors")["score.weight"]
    assert built.head == ["score"]
    assert built.model.score.weight.dtype == torch.float32
    assert torch.equal(built.model.score.weight, saved.float())


@pytest.mark.parametrize(
    ("asked", "stored", "precision", "device", "frozen"),
    [
        ("auto", "bf16", "bf16", CUDA, "bf16"),
        ("auto", "bf16", "fp32", CUDA, "fp32"),
        ("auto", "bf16", "bf16", CPU, "fp32"),
        ("auto", "fp16", "bf16", CUDA, "fp32"),
        ("auto", "fp32", "bf16", CUDA, "fp32"),
        ("auto", "fp64", "fp32", CPU, "fp64"),
        ("fp32", "bf16", "bf16", CUDA, "fp32"),
        ("bf16", "fp32", "bf16", CPU, "bf16"),
    ],
)
def test_what_auto_means(asked, stored, precision, device, frozen):
    assert choose_dtype(asked, stored, precision, device) == frozen


def test_bf16_weights_need_bf16_autocast(tmp_path):
    done = inside(
        "tiny=true", "method=lora", "model=tiny_bert", "model.dtype=bf16", f"out={tmp_path / 'out'}", status=2
    )
    assert done.stderr == (
        "error: model.dtype must be fp32 or auto with train.precision=fp32 (got bf16); bf16 weights need "
        "train.precision=bf16\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_dtype_of_a_half_precision_checkpoint_enters_the_run_s_name(tmp_path, safe_bf16):
    path = save(tmp_path / "m", torch.bfloat16)
    one = run(tmp_path, "one", "method=lora", "train.precision=bf16", path)
    other = run(tmp_path, "other", "method=lora", *BF16, path)
    assert one.name != other.name


def test_storing_keeps_what_must_stay_wide():
    model = tiny("t5", width=32).build(2).model
    model.requires_grad_(False)
    norm = model.transformer.encoder.block[0].layer[0].layer_norm
    norm.weight.requires_grad_(True)
    store(model, "bf16")
    held = {name: p.dtype for name, p in model.named_parameters()}
    wide = {name for name, dtype in held.items() if dtype == torch.float32}
    assert wide == {name for name in held if name.endswith(".wo.weight")} | {
        "transformer.encoder.block.0.layer.0.layer_norm.weight"
    }


@pytest.mark.parametrize("init", representatives(["eva", "lora_ga"], 1))
def test_inits_that_measure_run_on_bf16_weights(tmp_path, init, safe_bf16):
    folder = run(
        tmp_path, "out", "method=lora", f"init={init}", "init.steps=2", *BF16, save(tmp_path / "m", torch.bfloat16)
    )
    assert dtypes(folder) == {"base": "bf16", "trained": "fp32", "compute": "bf16"}


def bf16_model() -> torch.nn.Module:
    net = torch.nn.ModuleDict({"query": torch.nn.Linear(8, 8), "head": torch.nn.Linear(8, 2)})
    return net.to(torch.bfloat16)


@pytest.mark.parametrize(
    "train",
    [
        lambda model: adarank.adapt(model, rank=2, targets=["query"], train=["head"]),
        lambda model: adarank.bottlenecks(model, ["query"], targets=["query"], train=["head"]),
        lambda model: adarank.bitfit(model, train=["head"]),
    ],
    ids=["adapt", "bottlenecks", "bitfit"],
)
def test_a_module_that_trains_in_half_precision_is_warned_of(train, recwarn):
    model = bf16_model()
    fine = copy.deepcopy(model)
    with pytest.warns(
        UserWarning, match=r"trains in bfloat16, whose rounding .* model\.get_submodule\('\w+'\)\.float\(\)"
    ):
        train(model)
    recwarn.clear()
    train(fine.float())
    assert not recwarn.list


def test_attention_that_a_model_has_not(tmp_path):
    words = ["tiny=true", "method=lora", "model=tiny_bert", f"out={tmp_path / 'out'}"]
    done = inside(*words, "model.attention=flash_attention_2", status=2)
    assert done.stderr.startswith("error: model.attention=flash_attention_2: the package flash-attn is not installed")
    inside(*words, "model.attention=eager")
    done = inside(*words, "model.attention=fast", status=2)
    assert "model.attention must be one of auto, sdpa, eager, flash_attention_2 (got fast)" in done.stderr


def test_a_dtype_that_does_not_exist():
    with pytest.raises(SettingError, match=r"model\.dtype must be fp32 or auto"):
        choose_dtype("bf16", "bf16", "fp32", CPU)
