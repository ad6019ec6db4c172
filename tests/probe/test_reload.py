"""A finished run opened again: the base as it was, then the model as it was kept."""

import json

import numpy as np
import pytest
import torch

from adarank.errors import SettingError
from adarank.harness.data.batches import collate, encode
from adarank.probe.reload import load_trained_weights, open_run
from tests.experiments.test_run import inside


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    for words in (("method=adalora", "rank=2"), ("method=full",), ("method=bitfit",)):
        inside(*words, "tiny=true", "seed=3", "train.lr=0.003", f"out={folder}")
    return folder


@pytest.mark.parametrize("method", ["adalora", "full", "bitfit"])
def test_it_scores_what_the_run_scored(out, method):
    (folder,) = out.glob(f"{method}-*")
    summary = json.loads((folder / "summary.json").read_text())
    run = open_run(folder)
    before = {name: p.clone() for name, p in run.model.named_parameters()}
    adapters = load_trained_weights(run)
    assert bool(adapters) == (method == "adalora")
    test = encode(run.task.test, run.built.tokenizer, run.task.max_length)
    inputs, labels = collate(test, np.arange(len(test)), run.device)
    with torch.no_grad():
        right = run.model.eval()(**inputs).logits.argmax(-1) == labels
    assert float(right.double().mean()) == pytest.approx(summary["metric"]["test"])
    after = dict(run.model.named_parameters())
    assert any(name not in after or not torch.equal(p, after[name]) for name, p in before.items())


def test_a_folder_without_weights_or_with_others_is_refused(out, tmp_path):
    (folder,) = out.glob("full-*")
    for name in ("config.yaml", "summary.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(SettingError, match=r"has no trained weights; it must hold adapter/ or checkpoint/"):
        load_trained_weights(open_run(tmp_path))
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "model.safetensors").write_bytes(b"none")
    with pytest.raises(SettingError, match="does not fit the run's model"):
        load_trained_weights(open_run(tmp_path))
    (tmp_path / "summary.json").write_text('{"status": "diverged"}')
    with pytest.raises(SettingError, match="must be the folder of a finished run \\(its status is diverged\\)"):
        open_run(tmp_path)
