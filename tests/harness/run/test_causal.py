"""What a causal language model is checked for before training: refusals in one sentence, and what auto decides."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import adarank
from adarank.errors import SettingError
from adarank.harness.config.spec import Spec, TrainConfig
from adarank.harness.data.losses import computes_in_chunks
from adarank.harness.run.causal import check_settings, prepare_causal
from adarank.harness.run.prepare import Prepared
from tests.harness.data.causal_models import VOCABULARY, build

CPU = torch.device("cpu")
ROWS = SimpleNamespace(lengths=np.array([7, 16, 3]))
LARGE = 2**28 // (16 * VOCABULARY)  # the rows of the longest forward pass that auto leaves whole


def spec(**train):
    return Spec(method="x", train=TrainConfig(lr=1.0, precision="fp32", **train))


def prepared(model, task_type="generate", **train):
    return prepare_causal(
        model if isinstance(model, Prepared) else Prepared(model, {}, None),
        spec(**train),
        SimpleNamespace(task_type=task_type),
        ROWS,
        CPU,
    )


@pytest.mark.parametrize(
    ("kind", "train", "message"),
    [
        (
            "classify",
            {"packing": True},
            r"train.packing must be false .* classify, whose head pools one vector per row",
        ),
        ("extract", {"packing": True}, r"train.packing must be false .* extract, whose answers are places"),
        ("seq2seq", {"packing": True}, r"train.packing must be false .* seq2seq, whose decoder attends"),
        (
            "another",
            {"packing": True},
            r"train.packing must be false .* another, which trains no causal language model",
        ),
        ("seq2seq", {"chunked_loss": True}, r"train.chunked_loss must be auto or false .* seq2seq, .*\(got true\)"),
    ],
)
def test_other_types_of_task_refuse_them(kind, train, message):
    with pytest.raises(SettingError, match=message):
        check_settings(spec(**train), SimpleNamespace(task_type=kind))


def test_other_types_of_task_are_left_alone():
    check_settings(spec(), SimpleNamespace(task_type="classify"))
    given = Prepared(torch.nn.Linear(1, 1), {}, None)
    assert prepared(given, "classify") is given
    check_settings(spec(packing=True, chunked_loss=True), SimpleNamespace(task_type="generate"))


def test_a_model_that_mixes_rows_is_refused():
    with pytest.raises(
        SettingError, match=r"train.packing must be false with BloomForCausalLM, .* packed rows .* alone \(got true\)"
    ):
        prepared(build("bloom"), packing=True)
    assert prepared(build("bloom")).packing is None


def test_a_model_that_changes_its_logits_keeps_them_whole():
    with pytest.raises(
        SettingError,
        match=r"chunked_loss must be auto or false with Gemma2ForCausalLM: .*softcapping=30.0\) \(got true\)",
    ):
        prepared(build("gemma2"), chunked_loss=True)
    assert not computes_in_chunks(prepared(build("gemma2"), batch_size=2 * LARGE).model)


def test_auto_computes_more_than_2_28_logits_in_chunks():
    assert not computes_in_chunks(prepared(build("llama")).model)
    assert not computes_in_chunks(prepared(build("llama"), batch_size=LARGE).model)
    assert computes_in_chunks(prepared(build("llama"), batch_size=LARGE + 1).model)
    assert not computes_in_chunks(prepared(build("llama"), batch_size=LARGE + 1, chunked_loss=False).model)
    assert computes_in_chunks(prepared(build("llama"), chunked_loss=True).model)


def test_a_score_that_records_the_head_s_inputs_keeps_logits_whole():
    model = build("llama")
    adapters = adarank.adapt(model, rank=4, targets=["q_proj", "lm_head"])
    schedule = adarank.schedules.cubic(12, 6, t_i=1, t_f=2, total=6, interval=1)
    controller = adarank.RankController(adapters, score=adarank.scores.output(), schedule=schedule)
    given = Prepared(model, adapters, controller)
    with pytest.raises(SettingError, match="the score records the inputs of its adapted head"):
        prepared(given, chunked_loss=True)
    assert not computes_in_chunks(prepared(given, batch_size=LARGE + 1).model)


def test_names_of_runs_with_the_defaults_do_not_change():
    assert not {"packing", "chunked_loss"} & spec().train.identity().keys()
    changed = replace(spec().train, packing=True, chunked_loss=False).identity()
    assert (changed["packing"], changed["chunked_loss"]) == (True, False)
