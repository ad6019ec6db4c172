"""`make test-slow` runs every command in a block of a page, and every example that nothing else runs, on small data.

The commands of a page run one after another in one folder, as a reader types them. What makes them take seconds is
`tiny=true` and small models in place of published ones; what cannot run here is listed in NOT_RUN with its reason.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

import adarank
from adarank.cli import main
from tests.experiments.test_run import inside
from tests.harness.data.tasks import official_glue
from tests.pages import PAGES, ROOT, commands, snippets
from tests.test_pages import bert_batches, example

NOT_RUN = {  # (page, beginning of the command): why, and what runs it elsewhere
    ("README", "make "): "would train for minutes; the demo's experiment runs in tests/experiments/test_run.py",
    ("distributed", "torchrun --nnodes"): "two machines",
    ("ecosystem", "adarank inspect"): "tests/integrations/test_page.py",
    ("ecosystem", "adarank merge"): "tests/integrations/test_page.py",
    ("ecosystem", "adarank export"): "tests/integrations/test_page.py",
    ("ecosystem", "adarank compress"): "tests/integrations/test_page.py",
    ("ecosystem", "adarank run task="): "tests/integrations/test_page.py",
    ("images", "adarank run task=images task.name"): "the hub",
    ("large_models", "pip install"): "the package registry",
    ("benchmarks", "OMP_NUM_THREADS=1"): "an hour; tests/experiments/bench/test_bench.py",
    (
        "protocol",
        "python experiments/protocol.py experiments/studies/controls.yaml",
    ): "an hour; tests/experiments/test_protocol.py",
    ("protocol", "python experiments/protocol.py STUDY --looks"): "an hour; tests/experiments/test_protocol.py",
    ("protocol", "python experiments/reproduce"): "hours; tests/experiments/reproduce runs --scale tiny",
    ("sweeps", "wandb"): "W&B's server; tests/harness/tracking/test_agent.py",
    ("sweeps", "adarank sync"): "W&B's server; tests/harness/tracking",
}
SMALL = {  # models in place of published ones
    "minilm_l6": "tiny_bert",
    "mpnet_base": "tiny_roberta",
    "deberta_v3_base": "tiny_deberta_v2",
    "local": "tiny_vit",
}
TINY = (
    "train.steps",
    "train.batch_size",
    "train.eval_every",
    "model.path",
    "model.allow_bin",
    "hydra/launcher",
    "tiny",
)
RUNNABLE = [page for page in PAGES if any(command.block for command in commands(page))]


def reason(command):
    return next(
        (why for (page, start), why in NOT_RUN.items() if command.page.stem == page and command.text.startswith(start)),
        None,
    )


def test_every_exception_is_needed():
    texts = [(command.page.stem, command.text) for page in RUNNABLE for command in commands(page) if command.block]
    for page, start in NOT_RUN:
        assert any(of == page and text.startswith(start) for of, text in texts), (page, start)


def small(words):
    """Settings of a run that takes seconds: two values of every sweep, a small model, few steps."""
    found = [*(["-m"] if "-m" in words else []), "tiny=true"]
    for word in words:
        key, _, value = word.partition("=")
        if key == "model":
            found.append(f"model={SMALL[value]}")
        elif key == "task.path" and value == "FOLDER":
            found.append(f"task.path={'PICTURES' if 'task=images' in words else 'FOLDER'}")
        elif key in ("seed", "rank", "train.lr", "score"):
            found.append(f"{key}={','.join(value.split(',')[:2])}")
        elif key not in (*TINY, "-m"):
            found.append(word)
    return found if any(word.startswith("out=") for word in found) else [*found, "out=runs"]


def placed(words):
    """With what the words in capitals stand for in this folder."""
    run = str(next(Path("runs").rglob("adalora-*-s0"), "none"))
    names = {"RUN": run, "OUT": "runs", "STUDY": "experiments/studies/controls_declared.yaml", "RESULTS": "results"}
    names["EARLIER_RESULTS"] = "experiments/results/controls"
    names |= {"Qwen/Qwen2.5-0.5B": "base", "roberta_base": "tiny_roberta"}  # of adarank suggest
    words = [re.sub(r"\bRUN\b", run, word) if "=" in word else names.get(word, word) for word in words]
    return [re.sub(r"runs/first/adalora-HASH-s0", run, word) for word in words]


def execute(command):
    words = placed(command.words)
    program, rest = words[0], words[1:]
    if words[:2] == ["adarank", "run"]:
        inside(*small(rest[1:]))
    elif program == "adarank":
        if rest[0] == "merge":
            rest += ["--base", "base"]
        assert main(rest) == 0, command
    elif program == "torchrun":
        begin = rest.index("experiments/run.py")
        start(
            [
                "-m",
                "torch.distributed.run",
                "--standalone",
                *rest[:begin],
                ROOT / rest[begin],
                *small(rest[begin + 1 :]),
            ]
        )
    else:
        assert program == "python", command
        start([ROOT / rest[0], *few(rest[1:])])


def few(words):
    """Arguments of a script that trains: one seed, one shuffle, tiny runs."""
    if "experiment=quickstart" not in words:
        return words
    text = re.sub(r"--seeds [\d ]+", "--seeds 0 ", " ".join(words)).replace("--shuffles 3", "--shuffles 1")
    return [*text.split(), "tiny=true"]


def start(words):
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the data, models and committed results that the pages' commands name."""
    monkeypatch.chdir(tmp_path)
    for name in ("GLUE", "FOLDER", "docs"):
        Path(name).mkdir()
    official_glue.write(tmp_path / "GLUE")
    rows = "".join(f"a {'good' if i % 2 else 'bad'} film {i},{i % 2}\n" for i in range(40))
    for split in ("train", "dev"):
        Path("FOLDER", f"{split}.csv").write_text("review,stars\n" + rows)
    Path("rows.jsonl").write_text(
        "".join(json.dumps({"prompt": f"Say {i}.", "response": str(i)}) + "\n" for i in range(16))
    )
    for part in ("results", "studies"):
        shutil.copytree(ROOT / "experiments" / part, Path("experiments", part))
    return tmp_path


def pictures(folder):
    from PIL import Image

    for kind in ("cat", "dog"):
        (folder / kind).mkdir(parents=True)
        for i in range(20):
            Image.new("RGB", (8, 8), (i, 0, 255 if kind == "cat" else 0)).save(folder / kind / f"{i}.png")


def language_model(folder):
    from adarank.harness.data.task_types import generate
    from adarank.harness.models import tiny

    built = tiny("llama", width=32).build(0, generate)
    built.model.save_pretrained(folder)
    built.tokenizer.save_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run(page, place):
    todo = [command for command in commands(page) if command.block and reason(command) is None]
    if page.stem == "images":
        pictures(place / "PICTURES")
    if page.stem == "ecosystem":
        language_model(place / "base")
    if page.stem == "first_sweep":
        example("docs/first_sweep.md", "first_sweep")
    if page.stem in ("how_to", "report"):  # they read runs that other commands made
        inside("-m", "tiny=true", "method=lora,adalora", "seed=0,1", "out=runs")
    for command in todo:
        if page.stem == "first_sweep" and command.words[1] == "merge":
            bert_of_the_run(place / "base")
        execute(command)
    if page.stem == "first_sweep":
        assert Path("runs/first/report/index.html").is_file()
        assert (place / "lora" / "adapter_config.json").is_file()
        assert type(transformers.AutoModelForSequenceClassification.from_pretrained("merged")).__name__.startswith(
            "Bert"
        )
    if page.stem == "ecosystem":
        config = example("docs/ecosystem.md", "load_ranks")["config"]
        assert config.rank_pattern


def bert_of_the_run(folder):
    from adarank.harness.models import tiny

    built = tiny("bert").build(2)
    built.model.save_pretrained(folder)
    built.tokenizer.save_pretrained(folder)


@pytest.mark.slow
def test_the_frames_of_the_runs_page(place, capsys):
    inside("-m", "tiny=true", "method=lora,adalora", "seed=0,1", "out=runs/demo")
    frame = example("docs/runs.md", "frame")["runs"]
    assert sorted(set(frame["method"])) == ["adalora", "lora"]
    assert "count" in capsys.readouterr().out


@pytest.mark.slow
def test_peft_s_loop_runs():
    """And ends at the budget that the page gives it, so that the two loops do the same."""
    pytest.importorskip("peft")
    model, batches = bert_batches(100)
    names = example("docs/from_peft.md", "peft", base=model, batches=batches)
    factors = [p for name, p in names["peft_model"].named_parameters() if "lora_E" in name]
    assert sum(int((p != 0).sum()) for p in factors) == 8 * len(factors)


@pytest.mark.slow
def test_half_precision_models_train_under_autocast():
    """The example for large models, with a small model of the kind in place of the hub's, and the CPU's autocast."""
    from types import SimpleNamespace

    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0
    )
    model = transformers.LlamaForSequenceClassification(config).to(torch.bfloat16)
    code = snippets(ROOT / "docs" / "large_models.md")["half"].replace('"cuda"', '"cpu"')
    batch = {"input_ids": torch.tensor([[2, 7, 9, 4]]), "labels": torch.tensor([1])}
    names = {"torch": torch, "adarank": adarank, "batch": batch}
    names["AutoModelForSequenceClassification"] = SimpleNamespace(from_pretrained=lambda name, dtype: model.to(dtype))
    exec(compile(code, "docs/large_models.md", "exec"), names)
    names["loss"].backward()
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert all(p.grad is not None for p in model.score.parameters())
