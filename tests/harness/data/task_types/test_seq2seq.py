"""Losses and summaries against one text at a time, and one run of each architecture."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from adarank.errors import SettingError
from adarank.harness.config.spec import TrainConfig
from adarank.harness.data.task_types import seq2seq
from adarank.harness.data.tasks.base import Prompts, Task
from adarank.harness.models import tiny
from tests.experiments.test_run import inside, summaries
from tests.representatives import representatives

ROWS = Prompts(["a fine day", "rain", "a very long and grey afternoon"], [["fine"], ["wet weather"], ["grey"]])
CPU = torch.device("cpu")
CONFIG = TrainConfig(lr=1.0, batch_size=2, precision="fp32")


def task(**options):
    options = {"max_new_tokens": 6, "generate_rows": None, "beams": 2, **options}
    metrics = ("loss", "rouge1", "exact_match")
    return Task("x", ROWS, ROWS, ROWS, (), metrics, 20, "f", "seq2seq", options)


@pytest.fixture(scope="module", params=["bart", "t5"])
def built(request):
    torch.manual_seed(0)
    built = tiny(request.param).build(0, seq2seq)
    built.model.eval()
    return built


def test_texts_and_references_are_cut(built):
    rows = seq2seq.encode(task(), "train", built.tokenizer)
    assert rows.lengths.tolist() == [len(ids) for ids in rows.input_ids] == [12, 6, 20]  # bytes, and two special tokens
    assert rows.counted.tolist() == [6, 6, 6]
    assert (len(rows), len(rows.prompts)) == (3, 0)
    answered = [seq2seq.encode(task(generate_rows=n), "test", built.tokenizer).prompts for n in (None, 2, 9)]
    assert list(map(len, answered)) == [3, 2, 3]


def test_tokens_come_back_from_the_cache(built, tmp_path, monkeypatch):
    monkeypatch.setenv("ADARANK_CACHE", str(tmp_path))
    first = seq2seq.encode(task(), "train", built.tokenizer)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    monkeypatch.setattr(type(built.tokenizer), "__call__", None)  # nothing is tokenised again
    second = seq2seq.encode(task(), "train", built.tokenizer)
    assert (second.input_ids, second.labels) == (first.input_ids, first.labels)
    assert first.input_ids != first.labels


def test_the_loss_is_the_mean_over_tokens_and_transformers_own(built):
    rows = seq2seq.encode(task(max_new_tokens=20), "train", built.tokenizer)
    batch = seq2seq.collate(rows, np.arange(3), CPU)
    together = seq2seq.loss(built.model, batch)
    torch.testing.assert_close(together, built.model(**batch).loss)
    alone = [seq2seq.loss(built.model, seq2seq.collate(rows, np.array([i]), CPU)).item() for i in range(3)]
    counts = [seq2seq.units(rows, np.array([i])) for i in range(3)]
    assert counts == [6, 13, 6]
    assert together.item() == pytest.approx(np.average(alone, weights=counts), abs=1e-5)


def test_summaries_are_those_of_one_text_at_a_time(built):
    rows = seq2seq.encode(task(), "test", built.tokenizer)
    found = seq2seq.answers(built.model, rows, CONFIG, CPU)
    for text, given in zip(ROWS.prompt, found, strict=True):
        ids = built.tokenizer(text, truncation=True, max_length=20, return_tensors="pt")
        alone = built.model.generate(
            input_ids=ids["input_ids"],
            attention_mask=ids["attention_mask"],
            num_beams=2,
            do_sample=False,
            max_new_tokens=6,
        )
        assert given == built.tokenizer.decode(alone[0], skip_special_tokens=True)


def test_evaluation_gives_the_same_in_any_batches(built):
    rows = seq2seq.encode(task(max_new_tokens=12), "test", built.tokenizer)
    found = [seq2seq.evaluate(built.model, rows, task().metrics, replace(CONFIG, batch_size=n), CPU) for n in (1, 4)]
    built.model.eval()
    assert found[0].keys() == {"loss", "rouge1", "exact_match"}
    assert found[0] == pytest.approx(found[1], abs=1e-5, nan_ok=True)
    dev = seq2seq.encode(task(), "dev", built.tokenizer)
    assert seq2seq.evaluate(built.model, dev, ("loss",), CONFIG, CPU).keys() == {"loss"}
    built.model.eval()


def test_an_encoder_alone_is_refused(tmp_path):
    for split in ("train", "dev"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"document": "a", "summary": "b"}) + "\n")
    said = inside("task=xsum", f"task.path={tmp_path}", "tiny=true", f"out={tmp_path}/o", status=2).stderr
    assert said.startswith(
        "error: model=tiny_bert must be an encoder-decoder for this task (got the architecture bert)"
    )
    with pytest.raises(SettingError, match="must be an encoder-decoder"):
        tiny("gpt2").build(0, seq2seq)


@pytest.mark.parametrize("model", representatives(["tiny_bart", "tiny_t5"], 1))
def test_it_runs(tmp_path, model):
    for split in ("train", "dev", "test"):
        rows = [{"article": f"The {w} weather.", "highlights": w} for w in ("fine", "grey", "wet")]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    words = ["task=cnn_dailymail", f"task.path={tmp_path}", "task.beams=2", "tiny=true", f"model={model}"]
    inside(*words, "method=adalora", f"out={out}")
    (summary,) = summaries(out).values()
    assert (summary["status"], summary["task"], summary["metric"]["name"]) == ("finished", "cnn_dailymail", "loss")
    assert {"loss", "rouge1", "rouge2", "rougeL", "rougeLsum"} <= summary["test"].keys()
    assert summary["metric"]["best"] <= summary["metric"]["last"] + 1e-9
