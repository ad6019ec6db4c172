"""Two processes under torchrun do what one does with the same global batch. Without dropout, so that the streams agree.

Tolerance: both compute the same sums in another order. In fp32 (eps 6e-8) a loss near 1 moves by a few eps a step; over
24 steps through AdamW 1e-5 is far above that and far below what a wrong batch, gradient or mask would do (> 1e-3).
"""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adarank.errors import SettingError
from adarank.harness.config import validate
from adarank.harness.config.spec import Piece, Spec, TrainConfig
from adarank.harness.models import byte_tokenizer
from adarank.harness.run import distributed, parallel
from adarank.runs import allocations, predictions
from tests.experiments.test_run import ROOT, inside, main
from tests.harness.data.tasks import squad_folder
from tests.representatives import representatives

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--master-port=0", "--rdzv-backend=c10d"]
LAUNCH += ["--rdzv-endpoint=localhost:0"]
STOPPED = ("-m", "tests.harness.stopped")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny BERT without dropout, as files."""
    import transformers

    folder = tmp_path_factory.mktemp("model")
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = transformers.BertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes, **none)
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ["model=local", f"model.path={folder}", "tiny=true", "train.steps=24", "train.log_every=1", "rank=4"]


def launched(*arguments, processes=2, status=0, program=("experiments/run.py",)):
    command = [*LAUNCH, f"--nproc-per-node={processes}", *program, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600, env=environment)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def forked(*arguments, folder, processes=2):
    """As `launched`, by processes that have everything imported; what each printed. A free port is theirs a moment."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    everyone = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}

    def work(rank):
        os.environ.update({key: str(value) for key, value in {**everyone, "RANK": rank, "LOCAL_RANK": rank}.items()})
        with (folder / f"said-{rank}").open("w") as file, redirect_stdout(file), redirect_stderr(file):
            status = main(arguments)
        os._exit(status)

    started = [multiprocessing.get_context("fork").Process(target=work, args=(rank,)) for rank in range(processes)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    said = [(folder / f"said-{rank}").read_text() for rank in range(processes)]
    assert [process.exitcode for process in started] == [0] * processes, said
    return said


def lines(folder, name):
    path = folder / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def losses(folder):
    return {(line["step"], line["split"]): line["loss"] for line in lines(folder, "metrics.jsonl")}


def assert_alike(first: Path, second: Path):
    """Every run of two sweeps' folders: same names, losses within tolerance, same masks by every count."""
    runs = sorted(p.parent.name for p in first.glob("*/summary.json"))
    assert runs
    assert runs == sorted(p.parent.name for p in second.glob("*/summary.json"))
    for run in runs:
        ours, theirs = losses(second / run), losses(first / run)
        assert ours == pytest.approx(theirs, rel=0, abs=1e-5), run
        assert max(theirs.values()) - min(theirs.values()) > 1e-3, "nothing was learned, nothing compared"
        ranks = [
            [r["ranks"] for r in allocations.read(folder / run / "allocations.jsonl")[0]] for folder in (first, second)
        ]
        assert ranks[0] == ranks[1], run
        found = [json.loads((folder / run / "summary.json").read_text()) for folder in (first, second)]
        assert found[0]["rank"] == found[1]["rank"]
        assert found[0]["metric"] == pytest.approx(found[1]["metric"], abs=1e-5)
        columns = [predictions.read(folder / run) for folder in (first, second)]
        assert columns[0].keys() == columns[1].keys()
        assert ("score" in columns[0]) == (found[0]["test"] is not None)
        for name, values in columns[0].items():
            assert columns[1][name] == pytest.approx(values, abs=1e-5), name


@pytest.mark.parametrize("torchrun", representatives([False, True], 1))
def test_adalora_with_compaction_accumulation_and_recomputed_activations(model, torchrun, tmp_path):
    words = [
        "method=adalora",
        "compaction=progressive",
        "compact_after=1",
        "train.gradient_accumulation_steps=2",
        "train.microbatches=2",
        *model,
    ]
    inside(*words, f"out={tmp_path / 'one'}")
    words += ["train.gradient_checkpointing=true", f"out={tmp_path / 'two'}"]
    said = launched(*words).stdout if torchrun else "".join(forked(*words, folder=tmp_path))
    assert_alike(tmp_path / "one", tmp_path / "two")
    assert said.count("test accuracy") == 1
    folder = next((tmp_path / "two").glob("adalora-*"))
    assert not list(folder.glob(".lock.*"))
    assert lines(folder, "allocations.jsonl")[-1]["kept"] == 4 * 12


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory):
    """{which: a folder with one/, trained here, and two/, by two processes}. One start of the two does it all."""
    folders = {which: tmp_path_factory.mktemp(which) for which in ("spans", "summaries")}
    rows = [json.dumps({"document": f"The {w} weather.", "summary": w}) + "\n" for w in ("fine", "grey", "wet")]
    for split in ("train", "dev", "test"):
        (folders["summaries"] / f"{split}.jsonl").write_text("".join(rows))
    squad = squad_folder.write(folders["spans"], "v2.0")
    xsum, path = folders["summaries"], bart(folders["summaries"])
    words = {
        "spans": ["task=squad_v2", f"task.path={squad}", *model, "train.steps=6"],
        "summaries": ["task=xsum", f"task.path={xsum}", "task.beams=2", "model=local", f"model.path={path}", "tiny=true",
                      "train.log_every=1", "rank=4", "train.steps=6"],
    }  # fmt: skip
    together = []
    for which, own in words.items():
        inside("method=adalora", *own, f"out={folders[which] / 'one'}")
        together += ["--", "method=adalora", *own, f"out={folders[which] / 'two'}"]
    launched(*together, program=("-m", "tests.harness.in_turn"))
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["spans", "summaries"])
def test_other_kinds_of_task(trained, kind):
    """Windows and summaries are dealt out to the processes and put together again."""
    both = trained[kind]
    assert_alike(both / "one", both / "two")
    tests = [json.loads(next(both.glob(f"{out}/*/summary.json")).read_text())["test"] for out in ("one", "two")]
    assert tests[0] == pytest.approx(tests[1], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("words", [("method=adalora",), ("method=full", "train.shard=fsdp2")])
def test_packed_rows_with_losses_in_chunks(words, tmp_path):
    """Each process packs its own share of a batch; one process pads the whole batch and holds all logits."""
    lines = [json.dumps({"prompt": "ab " * (1 + i % 7), "response": "cd" * (1 + i % 3)}) + "\n" for i in range(24)]
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(lines))
    common = [
        "task=instruct",
        f"task.path={tmp_path}",
        "model=tiny_llama",
        "tiny=true",
        "train.steps=12",
        "train.log_every=1",
        "rank=4",
    ]
    inside(*common, words[0], f"out={tmp_path / 'one'}")
    launched(*common, *words, "train.packing=true", "train.chunked_loss=true", f"out={tmp_path / 'two'}")
    (one,), (two,) = ([p.parent for p in (tmp_path / out).glob("*/summary.json")] for out in ("one", "two"))
    assert losses(two) == pytest.approx(losses(one), abs=2e-5)


def bart(folder):
    """A tiny BART without dropout, as files."""
    import transformers

    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "dropout": 0.0}
    tokens = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "decoder_start_token_id": 3}
    ends = {"eos_token_id": tokenizer.sep_token_id, "bos_token_id": 2, "forced_eos_token_id": tokenizer.sep_token_id}
    config = transformers.BartConfig(**sizes, **tokens, **ends)
    transformers.BartForConditionalGeneration(config).save_pretrained(folder / "model")
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(folder / "model")
    return folder / "model"


NF4 = Piece("quantization", "adarank.harness.quantize.nf4", {})
SVD = Piece("adapter", "adarank.adapt", {"adapter": "svd"})


def spec(batch_size=8, optimizer="adamw", shard="none", **pieces):
    train = TrainConfig(lr=1.0, batch_size=batch_size, optimizer=optimizer, shard=shard)
    return Spec(method="x", train=train, **{"adapter": SVD, **pieces})


@pytest.mark.parametrize("world", [3, 16])
def test_a_batch_that_does_not_divide_is_refused(world, monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: world)
    with pytest.raises(
        SettingError, match=rf"train.batch_size must be a multiple of {world}, the number of processes .*\(got 8\)"
    ):
        validate._check_processes(spec())


@pytest.mark.parametrize(
    ("changes", "world", "message"),
    [
        ({}, 1, "has no effect in a single process"),
        ({"quantization": NF4}, 2, "cannot be combined with a 4-bit base"),
        ({"adapter": None, "optimizer": "adamw_8bit"}, 2, "cannot be combined with train.optimizer=adamw_8bit"),
    ],
)
def test_sharding_that_cannot_be_is_refused(changes, world, message, monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: world)
    with pytest.raises(SettingError, match=message):
        validate._check_processes(spec(shard="fsdp2", **changes))


def test_the_shares_of_all_ranks_are_the_batch(monkeypatch):
    inputs, labels = {"input_ids": torch.arange(24).view(8, 3)}, torch.arange(8)
    monkeypatch.setattr(parallel, "world", lambda: 4)
    parts = []
    for r in range(4):
        monkeypatch.setattr(parallel, "rank", lambda r=r: r)
        parts.append(parallel.local_batch({**inputs, "labels": labels}))
    assert torch.equal(torch.cat([part["labels"] for part in parts]), labels)
    assert torch.equal(torch.cat([part["input_ids"] for part in parts]), inputs["input_ids"])
    assert {len(part["labels"]) for part in parts} == {2}


@pytest.mark.slow
def test_every_method_in_one_sweep(model, tmp_path):
    inside("-m", "method=glob(*)", *model, "train.lr=3e-3", f"out={tmp_path / 'one'}")
    done = launched("-m", "method=glob(*)", *model, "train.lr=3e-3", f"out={tmp_path / 'two'}")
    assert_alike(tmp_path / "one", tmp_path / "two")
    assert done.stderr.count("error:") == 0


@pytest.mark.slow
def test_fsdp2(model, tmp_path):
    words = ["train.lr=3e-3", "train.gradient_accumulation_steps=2", "train.microbatches=2", *model]
    sharded = ["train.shard=fsdp2", "train.gradient_checkpointing=true"]
    for which in (["method=full,lora,bitfit,houlsby,pissa,sora"], ["method=adalora", "compaction=off,final"]):
        inside("-m", *which, *words, f"out={tmp_path / 'one'}")
        launched("-m", *which, *words, *sharded, f"out={tmp_path / 'two'}")
    assert_alike(tmp_path / "one", tmp_path / "two")
    full = [next((tmp_path / n).glob("full-*")) / "checkpoint" / "model.safetensors" for n in ("one", "two")]
    one, two = map(load_file, full)
    assert {name: tensor.shape for name, tensor in one.items()} == {name: tensor.shape for name, tensor in two.items()}
    assert all(torch.allclose(one[name], two[name], rtol=0, atol=1e-4) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("words", [["method=adalora", "compaction=progressive", "compact_after=1"], ["method=full"],
                                   ["method=full", "train.shard=fsdp2"]])  # fmt: skip
def test_killed_and_resumed_in_another_number_of_processes(words, processes, model, tmp_path):
    words = [*words, *model, "train.lr=3e-3"]
    alone = [w for w in words if w != "train.shard=fsdp2"]
    inside(*alone, f"out={tmp_path / 'one'}")
    out = [f"out={tmp_path / 'two'}", "checkpoint_seconds=0"]
    launched("kill", 12, *words, *out, program=STOPPED, status=1)
    (state,) = (tmp_path / "two").glob("*/checkpoint/state.safetensors")
    done = inside(*alone, *out) if processes == 1 else launched(*words, *out, processes=processes)
    assert "resumes from the checkpoint after step 12" in done.stdout
    assert not state.exists()
    assert_alike(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_fails_alone_says_so_once_and_ends_all(rank, model, tmp_path):
    done = launched("fail", rank, "method=lora", *model, f"out={tmp_path}", program=STOPPED, status=1)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:") and "out of luck" in line]
    assert len(errors) == 1
    assert errors[0].endswith(f"(rank {rank})")
    (status,) = tmp_path.glob("*/status.json")
    found = json.loads(status.read_text())
    assert found["state"] == "failed" or rank == 1  # torchrun may end rank 0 before it writes that down


@pytest.mark.slow
def test_what_every_rank_refuses_is_said_once(model, tmp_path):
    done = launched("-m", "method=lora,full", "train.batch_size=7,8", *model, f"out={tmp_path}", status=1)
    said = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert (
        said
        == ["error: train.batch_size must be a multiple of 2, the number of processes that share a batch (got 7)"] * 2
    )
    assert "2 of 4 jobs failed" in done.stderr
    assert len(list(tmp_path.glob("*/summary.json"))) == 2
    assert "exitcode  : 2" in done.stderr
    again = launched("method=lora", *model, f"out={tmp_path}")
    assert again.stdout.count("finished already") == 1


@pytest.mark.slow
def test_a_divergence_is_every_ranks(model, tmp_path):
    done = launched("method=full", "train.lr=1e30", *model, f"out={tmp_path}", status=1)
    assert done.stderr.count("error: full-s0 diverged") == 1
    (status,) = tmp_path.glob("*/status.json")
    assert json.loads(status.read_text())["state"] == "diverged"


@pytest.mark.slow
def test_it_ends_cleanly_every_time(model, tmp_path):
    for i in range(20):
        launched("method=head", *model, "train.steps=2", f"seed={i}", f"out={tmp_path}")
    assert len(list(tmp_path.glob("*/summary.json"))) == 20


@pytest.mark.slow
def test_a_launcher_with_processes_of_its_own_is_refused(model, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    done = launched("-m", "method=lora", "seed=0", "hydra/launcher=joblib", *model, f"out={tmp_path}", status=1)
    assert done.stderr.count("error: hydra/launcher must be basic under torchrun") == 1
    assert "(got joblib)" in done.stderr
