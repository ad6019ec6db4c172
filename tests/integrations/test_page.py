"""docs/ecosystem.md: its examples run, and its table's tests exist."""

import json
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import transformers

import adarank
from adarank.cli import main
from tests.harness.data.task_types.chat_models import CHATML
from tests.harness.data.tasks import test_chat as chat
from tests.harness.data.tasks import test_commonsense as commonsense
from tests.integrations.models import bert
from tests.mixtures import mixture

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "ecosystem.md").read_text(encoding="utf-8")
SNIPPETS = dict(re.findall(r"```python (\w+)\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to run in, with base/ and adapter/; returns the names that the examples use."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    bert().save_pretrained("base")
    model = transformers.BertForSequenceClassification.from_pretrained("base").eval()
    adapters = adarank.adapt(model, rank=3, targets=["query", "value"])
    with torch.no_grad():
        for i, adapter in enumerate(adapters.values()):
            adapter.lam.normal_()
            adapter.mask[:i] = False
    adarank.save_adapter(model, "adapter")
    narrow = transformers.BertConfig.from_pretrained("base", hidden_size=16)
    other = transformers.BertForSequenceClassification(narrow)
    batch = {"input_ids": torch.tensor([[2, 7, 9, 4]])}
    return {"model": model, "other_model": other, "batch": batch, "adarank": adarank}


def run(name, names):
    exec(compile(SNIPPETS[name], f"docs/ecosystem.md {name}", "exec"), names)


def logits(model, names):
    with torch.no_grad():
        return model.eval()(**names["batch"]).logits


def test_to_peft_and_from_peft(here):
    expected = logits(here["model"], here)
    run("to_peft", here)
    run("from_peft", here)
    torch.testing.assert_close(logits(here["base"], here), expected, rtol=1e-5, atol=1e-6)
    assert sorted(adarank.ranks(here["base"]).values()) == [1, 2, 3]  # rank 0 is no target
    run("uniform", here)
    again = transformers.BertForSequenceClassification.from_pretrained("base")
    adarank.from_peft(again, "one_rank")
    assert set(adarank.ranks(again).values()) == {3}
    torch.testing.assert_close(logits(again, here), expected, rtol=1e-5, atol=1e-6)


def test_merge(here):
    expected = logits(here["model"], here)
    run("merge", here)
    torch.testing.assert_close(logits(here["model"], here), expected, rtol=1e-5, atol=1e-6)
    merged = transformers.AutoModelForSequenceClassification.from_pretrained("merged")
    torch.testing.assert_close(logits(merged, here), expected, rtol=1e-5, atol=1e-6)


def test_the_refusal_names_the_shapes(here, capsys):
    run("refusal", here)
    assert "is 32 → 32 there, 16 → 16 here" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:no adapter can wrap")
def test_experts(here):
    mixture("GptOss").save_pretrained("moe")
    run("experts", here)
    assert len(here["adapters"]) == 2 * (2 * 4 + 2)


def test_suggest(here):
    plain = transformers.BertForSequenceClassification.from_pretrained("base")
    batches = [here["batch"] | {"labels": torch.tensor([label])} for label in (0, 2)]
    here |= {"plain_model": plain, "batches": batches}
    run("suggest", here)
    assert sum(here["ranks"].rank_pattern.values()) == 4 * 12


@pytest.mark.slow
def test_the_suggested_configuration_loads(here):
    """tests/test_pages_run.py loads a folder that `adarank suggest` wrote."""
    peft = pytest.importorskip("peft")
    peft.LoraConfig(rank_pattern={"query": 3}).save_pretrained("ranks")
    run("load_ranks", here)
    assert here["config"].rank_pattern == {"query": 3}


@pytest.mark.usefixtures("here")
def test_the_commands(capsys):
    block = next(code for code in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) if "inspect" in code)
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    for words in lines:
        assert words[0] == "adarank"
        assert main(["adapter" if word == "FOLDER" else word for word in words[1:]]) == 0
    assert [words[1] for words in lines] == ["inspect", "merge", "export", "compress"]
    assert "lost" in capsys.readouterr().out
    assert all((Path(name)).is_dir() for name in ("merged", "lora", "small"))


def test_every_example_is_run():
    source = Path(__file__).read_text(encoding="utf-8")
    assert set(SNIPPETS) == set(re.findall(r'run\("(\w+)"', source))


def test_every_test_that_the_table_names_exists():
    table = PAGE[PAGE.index("## Compared with PEFT's own AdaLoRA") :]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "`test" in line]
    assert len(rows) >= 10
    for row in rows:
        cells = [cell for cell in row.strip("|").split("|")[1:] if cell.strip() not in ("", "–")]
        assert len(cells) == 2 or row.count("| – |") == 1  # PEFT has nothing to compare
        for cell in cells:
            name = re.findall(r"`(test\w+)`", cell)
            assert name, f"no test is named in: {cell}"
            found = [
                p for p in (ROOT / "tests").rglob("test_*.py") if f"def {name[-1]}(" in p.read_text(encoding="utf-8")
            ]
            assert found, f"{name[-1]} does not exist"


@pytest.fixture
def instructions(tmp_path, monkeypatch):
    """OWN/, E2E/, GSM8K/, TALKS/ and LLM-Adapters/dataset/ with a few rows, and lm/, a small Llama, in the folder to
    run in."""
    from adarank.harness.data.task_types import generate
    from adarank.harness.models import tiny

    monkeypatch.chdir(tmp_path)
    for name in ("OWN", "E2E", "GSM8K", "TALKS"):
        Path(name).mkdir()
    commonsense.write(Path("LLM-Adapters/dataset"), {"boolq": 12, "ARC-Easy": 12})
    rows = "".join(f'"name[Pub {i}]","Pub {i} is a pub."\n' for i in range(8))
    for name in ("devset", "testset_w_refs"):
        Path("E2E", f"{name}.csv").write_text("mr,ref\n" + rows)
    for split in ("train", "test"):
        asked = [json.dumps({"question": f"{i} + 1?", "answer": f"#### {i + 1}"}) for i in range(8)]
        Path("GSM8K", f"{split}.jsonl").write_text("\n".join(asked))
        said = [json.dumps({"prompt": f"Say {i}.", "response": str(i)}) for i in range(8)]
        Path("OWN", f"{split}.jsonl").write_text("\n".join(said))
        chat.write(Path("TALKS"), [chat.turns(f"Say {i}.", str(i)) for i in range(12)], split)
    torch.manual_seed(0)
    built = tiny("llama", width=32).build(0, generate)
    built.model.save_pretrained("lm")
    built.tokenizer.chat_template = CHATML
    built.tokenizer.save_pretrained("lm")


@pytest.mark.slow
@pytest.mark.usefixtures("instructions")
def test_causal_language_models():
    from tests.experiments.test_run import inside

    block = next(code for code in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) if "task=e2e" in code)
    lines = [shlex.split(line) for line in block.splitlines()]
    assert [words[2] for words in lines] == [
        f"task={name}" for name in ("e2e", "gsm8k", "instruct", "chat", "commonsense")
    ]
    small = ["model=local", "model.path=lm", "tiny=true", "train.steps=3", "train.batch_size=4", "out=runs"]
    for words in lines:  # as they stand, but for the model and what makes them take seconds
        kept = [w for w in words[2:] if not w.startswith(("model", "train."))]
        if "method=qlora" in kept and find_spec("bitsandbytes") is None:
            kept.remove("method=qlora")
        inside(*kept, *small)
        assert (
            not {w.partition("=")[0] for w in words[2:]}
            - {w.partition("=")[0] for w in [*kept, *small]}
            - {"model.name"}
        )
    names = {"run": next(Path("runs").glob("adalora-*"))}
    run("causal", names)
    words = {"input_ids": torch.tensor([[2, 70, 80, 90]])}
    merged = transformers.AutoModelForCausalLM.from_pretrained("lm_merged")
    torch.testing.assert_close(logits(merged, {"batch": words}), logits(names["lm"], {"batch": words}))
    assert type(merged).__name__ == "LlamaForCausalLM"
    assert json.loads(Path("lm_lora", "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
