"""train.capture: the captured step trains what the written-out one does, and says where it cannot be."""

from functools import partial

import pytest
import torch

from adarank.errors import SettingError
from adarank.harness.config.compose import spec_from
from adarank.harness.run import train as loop
from adarank.harness.run.captured import captured_step, check_capture, padded, why_not_captured
from adarank.harness.run.train import train
from experiments.bench.tape import Tape
from tests.harness.run.test_train import Recorder, setup
from tests.representatives import representatives


def run(method, **options):
    prepared, splits, spec = setup(method, steps=40, **options)
    for module in prepared.model.modules():
        if isinstance(module, torch.nn.Dropout):  # padding would change its stream
            module.p = 0.0
    log = Recorder()
    outcome = train(prepared, splits, spec, ("accuracy",), log, lambda step: None, lambda model: None)
    losses = [values["loss"] for _, split, values in log.lines if split == "train"]
    return losses, outcome, prepared


@pytest.mark.parametrize("method", representatives(["adalora", "lora", "full"], 1))
@pytest.mark.parametrize("graphs", [None, Tape])
def test_it_trains_what_the_written_out_step_trains(method, graphs, monkeypatch):
    """With tapes rows are padded to 16 tokens, which changes rounding."""
    expected, outcome, _ = run(method, microbatches=1)
    if graphs is not None:
        monkeypatch.setattr(loop, "captured_step", partial(captured_step, graphs=graphs))
    losses, captured, prepared = run(method, capture=True)
    assert losses == pytest.approx(expected, abs=2e-4)
    assert expected[0] - expected[-1] > 0.05
    assert captured.test == pytest.approx(outcome.test, abs=0.05)
    if prepared.controller is not None:
        assert prepared.controller.step == 40


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train.gradient_accumulation_steps=2"], "train.gradient_accumulation_steps=2 runs several passes per step"),
        (["train.microbatches=2"], "train.microbatches=2 runs several passes per step"),
        (["train.packing=true"], "train.packing=true gives every batch a different shape"),
        (["compaction=progressive"], "compaction=progressive would remove triplets later and so change the result"),
        (["train.gradient_checkpointing=true"], "train.gradient_checkpointing=true recomputes activations"),
        (["train.optimizer=adamw_8bit"], "train.optimizer=adamw_8bit has no capturable form"),
        (["method=qlora"], "quantization=nf4 computes with bitsandbytes"),
    ],
)
def test_true_is_refused_where_a_step_cannot_be_captured(words, says):
    with pytest.raises(SettingError) as error:
        check_capture(spec_from([*words, "train.capture=true"]), None)
    assert str(error.value).startswith(f"train.capture must be auto or false here, because {says}")
    check_capture(spec_from(words), None)


def test_a_score_that_records_activations_is_why_not():
    prepared, _, _ = setup("adalora")
    assert why_not_captured(spec_from([]), prepared.controller) is None
    prepared.controller.score = prepared.controller.score._replace(activation=lambda adapter, x: x.sum())
    assert why_not_captured(spec_from([]), prepared.controller) == "the score records activations"


def test_padding_fills_every_input_with_its_own_value():
    batch = {
        "input_ids": torch.ones(2, 5, dtype=torch.int64),
        "attention_mask": torch.ones(2, 5, dtype=torch.int64),
        "labels": torch.ones(2, 5, dtype=torch.int64),
    }
    found = padded(batch, pad=7)
    assert {name: tensor[0].tolist()[4:] for name, tensor in found.items()} == {
        "input_ids": [1, *[7] * 11],
        "attention_mask": [1, *[0] * 11],
        "labels": [1, *[-100] * 11],
    }
    assert padded({"labels": torch.zeros(3)}, pad=7)["labels"].shape == (3,)
    assert padded(found, pad=7)["input_ids"] is not None
    assert padded(found, pad=7)["input_ids"].shape == (2, 16)
