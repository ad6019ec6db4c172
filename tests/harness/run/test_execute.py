"""What a run checks before it trains, and what it keeps when something fails afterwards."""

import json
import platform
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from adarank.errors import SettingError
from adarank.harness.data.tasks.base import Split, Task
from adarank.harness.data.tasks.files import files
from adarank.harness.models import byte_tokenizer
from adarank.probe.reload import load_trained_weights, open_run
from adarank.runs import predictions
from tests.experiments.test_run import inside
from tests.harness.run.test_checkpoint import result

BAD_TEST, RAISES = "bad_test", "raises"  # files that break the task of a folder


def task(path: str) -> Task:
    """The files of `path`. With a file `bad_test` there, the labels of test are classes that the model does not have;
    with a file `raises`, reading fails."""
    if (Path(path) / RAISES).exists():
        raise LookupError("no such thing")
    read = files(path)
    if (Path(path) / BAD_TEST).exists():
        return replace(read, test=Split(read.test.text, None, read.test.label + 7))
    return read


class Tracker:
    """A copy of the run that does harm: it puts a folder where the summary will be written, or ends the process when
    the run finishes."""

    def __init__(self, folder, harm):
        self.folder, self.harm = folder, harm

    def metrics(self, step, split, values):
        if split == "test" and self.harm == "summary":
            (self.folder / "summary.json").mkdir(exist_ok=True)

    def allocation(self, record): ...

    def finish(self, summary):
        if self.harm == "exit":
            sys.exit(3)

    def close(self): ...

    def abandon(self): ...

    def recovery(self):
        return "nothing brings it back"


def tracker(harm: str, *, folder, config, name, default_group) -> Tracker:
    return Tracker(folder, harm)


@pytest.fixture
def words(tmp_path):
    """Settings of a tiny run on `data`, a task that can be broken."""
    for group, name in (("task", "task"), ("tracker", "tracker")):
        (tmp_path / "conf" / group).mkdir(parents=True)
        text = f"_target_: {__name__}.{name}\n{'path' if group == 'task' else 'harm'}: ???\n"
        (tmp_path / "conf" / group / "mine.yaml").write_text(text)
    for folder in ("data", "other"):
        (tmp_path / folder).mkdir()
        rows = "".join(f"{word} {folder},{i % 2}\n" for i, word in enumerate(("good", "bad") * 4))
        for split in ("train", "dev", "test"):
            (tmp_path / folder / f"{split}.csv").write_text("text,label\n" + rows)
    settings = ["method=adalora", "rank=2", "targets=qv", "tiny=true", "task=mine", f"task.path={tmp_path / 'data'}"]
    return ["--config-dir", str(tmp_path / "conf"), *settings]


def the_run(out: Path) -> Path:
    (folder,) = [path for path in out.iterdir() if path.is_dir()]
    return folder


def test_a_failure_at_test_keeps_what_was_trained_and_retry_trains_no_step_again(words, tmp_path):
    inside(*words, f"out={tmp_path / 'whole'}")
    (tmp_path / "data" / BAD_TEST).touch()
    out = tmp_path / "out"
    done = inside(*words, f"out={out}", status=1)
    folder = the_run(out)
    assert "adalora-r2-qv-s0 failed: IndexError: Target 7 is out of bounds." in done.stderr
    assert f"(traceback: {folder / 'traceback.txt'})" in done.stderr
    assert "in evaluate" in (folder / "traceback.txt").read_text()
    assert json.loads((folder / "status.json").read_text())["state"] == "failed"
    assert json.loads((folder / "summary.json").read_text())["error"].startswith("IndexError")
    assert (folder / "adapter" / "adapter.json").is_file()
    assert (folder / "checkpoint" / "state.safetensors").is_file()
    trained = (folder / "metrics.jsonl").read_text()
    assert "retry=failed runs it again" in inside(*words, f"out={out}", status=1).stderr
    (tmp_path / "data" / BAD_TEST).unlink()
    done = inside(*words, f"out={out}", "retry=failed")
    assert "resumes from the checkpoint after step 12" in done.stdout
    assert (folder / "metrics.jsonl").read_text().startswith(trained)
    assert result(out) == result(tmp_path / "whole")
    assert not (folder / "checkpoint").exists()
    assert not (folder / "traceback.txt").exists()


@pytest.mark.slow
def test_a_summary_that_cannot_be_written_costs_no_training(words, tmp_path):
    inside(*words, f"out={tmp_path / 'whole'}")
    out = tmp_path / "out"
    done = inside(*words, f"out={out}", "tracker=mine", "tracker.harm=summary", status=1)
    folder = the_run(out)
    assert f"stopped because {folder} cannot be written (Is a directory); its files stay" in done.stderr
    (folder / "summary.json").rmdir()
    assert "resumes from the checkpoint after step 12" in inside(*words, f"out={out}").stdout
    assert result(out) == result(tmp_path / "whole")


def test_a_tracker_that_ends_the_process_at_the_end_costs_its_copy_alone(words, tmp_path, caplog):
    inside(*words, f"out={tmp_path}/out", "tracker=mine", "tracker.harm=exit")
    assert json.loads((the_run(tmp_path / "out") / "summary.json").read_text())["status"] == "finished"
    assert "Tracking stopped (3)" in caplog.text
    assert "nothing brings it back" in caplog.text


def test_an_exception_of_a_job_is_told_at_once_and_the_others_run(words, tmp_path):
    (tmp_path / "data" / RAISES).touch()
    out, error = tmp_path / "out", "LookupError: no such thing"
    paths = f"task.path={tmp_path / 'data'},{tmp_path / 'other'}"
    done = inside("-m", *words, paths, f"out={out}", status=1)
    file = out / "job0-traceback.txt"
    assert done.stderr.splitlines()[0] == f"error: {error} (traceback: {file})"
    assert f"{error} (traceback: {file})" in done.stderr.splitlines()[-1]
    assert "did not finish" not in done.stderr
    assert "sweep: 2 of 2 jobs done, 1 failed" in done.stdout
    assert "LookupError" in file.read_text()
    assert json.loads((the_run(out) / "status.json").read_text())["state"] == "finished"
    done = inside(*words, f"out={out}", status=1)  # alone, and so without a place for the traceback
    assert done.stderr.splitlines()[0].startswith("Traceback")
    assert done.stderr.splitlines()[-1] == f"error: {error}"


def test_fail_fast_starts_no_job_after_a_failure(words, tmp_path):
    (tmp_path / "data" / RAISES).touch()
    out = tmp_path / "out"
    paths = f"task.path={tmp_path / 'data'},{tmp_path / 'other'}"
    done = inside("-m", *words, paths, "seed=0,1", "fail_fast=true", f"out={out}", status=1)
    assert "sweep: 1 of 4 jobs done, 1 failed; fail_fast=true stops the sweep" in done.stdout
    assert "3 of 4 jobs did not finish; run the same command again to run them" in done.stderr
    assert not [path for path in out.iterdir() if path.is_dir()]


@pytest.fixture
def short_model(tmp_path):
    """A model with 64 positions in a folder."""
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(tmp_path / "lm")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)).save_pretrained(
        tmp_path / "lm"
    )
    return ["model=local", f"model.path={tmp_path / 'lm'}"]


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_rows_longer_than_the_model_reads_are_refused_before_training(short_model, tmp_path, split):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("train", "dev", "test"):
        (folder / f"{name}.csv").write_text("text,label\na,0\nb,1\n" + f"{'long ' * 20},1\n" * (name == split))
    words = ["method=lora", "targets=qv", "rank=2", "tiny=true", *short_model, "task=files", f"task.path={folder}"]
    out = tmp_path / "out"
    done = inside(*words, "task.max_length=128", f"out={out}", status=2)
    assert done.stderr == (
        "error: task.max_length must be at most 64, the number of tokens that the model reads (got 128, and row 3 of "
        f"{split} has 102; it begins 'long long long long long long long long ')\n"
    )
    assert not out.exists()
    if split == "train":
        inside(*words, "task.max_length=64", f"out={out}")


def test_a_run_with_relative_paths_is_opened_from_another_folder(short_model, tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    for name in ("train", "dev"):
        (tmp_path / "d" / f"{name}.csv").write_text("text,label\na,0\nb,1\n")
    monkeypatch.chdir(tmp_path)
    words = ["method=lora", "targets=qv", "rank=2", "tiny=true", "task=files", "task.path=d", "model=local"]
    inside(*words, "model.path=lm", "out=out")
    folder = the_run(tmp_path / "out")
    assert "  path: d\n" in (folder / "config.yaml").read_text()
    paths = {"task.path": str(tmp_path / "d"), "model.path": str(tmp_path / "lm")}
    assert json.loads((folder / "summary.json").read_text())["paths"] == paths
    assert json.loads((folder / "adapter" / "adapter.json").read_text())["base"]["name"] == paths["model.path"]
    inside(*words, f"model.path={tmp_path / 'lm'}", "out=absolute")
    assert the_run(tmp_path / "absolute").name == folder.name, "paths are no part of a run's identity"
    (tmp_path / "elsewhere" / "d").mkdir(parents=True)  # another folder of that name is not taken for it
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = open_run(folder)
    assert run.task.train.text == ["a", "b"]
    assert set(load_trained_weights(run)) == set(json.loads((folder / "summary.json").read_text())["rank"]["final"])
    # where the data has moved, what was typed counts
    (tmp_path / "d").rename(tmp_path / "elsewhere" / "d" / "moved")
    with pytest.raises(SettingError, match=r"task\.path=d has no train file"):
        open_run(folder)


def test_arm_test_and_majority(tmp_path):
    """An arm is a label alone; test=false leaves test alone; the majority is that of the split that is judged."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name, labels in (("train", "0011"), ("dev", "0001"), ("test", "01111")):
        rows = "".join(f"{'long ' * i}{label},{label}\n" for i, label in enumerate(labels))
        (folder / f"{name}.csv").write_text("text,label\n" + rows)
    words = ["method=head", "tiny=true", "task=files", f"task.path={folder}"]
    inside(*words, "arm=head@1", f"out={tmp_path / 'tested'}")
    inside(*words, "test=false", f"out={tmp_path / 'tuned'}")
    tested, tuned = the_run(tmp_path / "tested"), the_run(tmp_path / "tuned")
    assert "finished already" in inside(*words, "arm=other", f"out={tmp_path / 'tested'}").stdout
    assert tested.name != tuned.name
    found = [json.loads((run / "summary.json").read_text()) for run in (tested, tuned)]
    assert [summary["arm"] for summary in found] == ["head@1", None]
    metric, of_dev = (summary["metric"] for summary in found)
    assert (metric["majority"], of_dev["majority"]) == (4 / 5, 3 / 4)
    assert (of_dev["test"], of_dev["test_last"], found[1]["test"]) == (None, None, None)
    assert '"test"' not in (tuned / "metrics.jsonl").read_text()
    assert not (tuned / "predictions.npz").exists()
    columns = predictions.read(tested)
    assert columns["label"].tolist() == [0, 1, 1, 1, 1]
    assert {name: values.dtype.name for name, values in columns.items() if not name.endswith("_best")} == {
        "label": "int64", "prediction": "int64", "score": "float32",
    }  # fmt: skip
    assert np.mean(columns["prediction"] == columns["label"]) == metric["test_last"]


def test_emulated_bf16_is_told_where_it_is_slow(words, tmp_path, monkeypatch):
    """With AVX-512, torch's bf16 is not slow; without it, a step of MiniLM-L6 took 12 times as long as in fp32."""
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    for capability, precision, told in (("AVX512", "bf16", 0), ("AVX2", "fp32", 0), ("AVX2", "bf16", 1)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda found=capability: found)
        out = inside(*words, f"train.precision={precision}", f"out={tmp_path / (capability + precision)}").stdout
        assert out.count("this processor emulates bf16; train.precision=fp32 takes a fraction of the time") == told


@pytest.mark.parametrize(("labels", "key"), [("0,1", "label"), ("0.5,1", "target")])
def test_a_test_without_labels_is_predicted_and_not_scored(tmp_path, labels, key):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("train", "dev"):
        first, second = labels.split(",")
        (folder / f"{name}.csv").write_text(f"text,label\na,{first}\nb,{second}\n")
    (folder / "test.csv").write_text("text\nnew\na much longer one\nold\n")
    done = inside(
        "method=lora",
        "targets=qv",
        "rank=2",
        "tiny=true",
        "task=files",
        f"task.path={folder}",
        f"out={tmp_path / 'out'}",
    )
    run = the_run(tmp_path / "out")
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["test"], summary["metric"]["test"]) == (None, None)
    assert summary["predictions"] == {"file": "predictions.jsonl", "rows": 3}
    assert "test has no labels; the predictions for its 3 rows are in predictions.jsonl" in done.stdout
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert [row["row"] for row in rows] == [1, 2, 3]
    opened = open_run(run)
    load_trained_weights(opened)
    for row, text in zip(rows, opened.task.unlabelled_test.text, strict=True):
        with torch.no_grad():
            logits = opened.model.eval()(**opened.built.tokenizer(text, return_tensors="pt")).logits[0]
        if key == "target":
            assert row["target"] == pytest.approx(logits.item(), abs=1e-5)
        else:
            assert row["label"] == ("0", "1")[int(logits.argmax())]
            assert list(row["probabilities"].values()) == pytest.approx(logits.softmax(-1).tolist(), abs=1e-5)
