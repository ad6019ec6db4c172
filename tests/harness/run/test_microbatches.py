"""Rows divided into passes by length: the gradient of a single pass, and where rows stay together."""

from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

import adarank
from adarank.errors import SettingError
from adarank.harness.config.spec import Spec, TrainConfig
from adarank.harness.data.batches import encode, training_order
from adarank.harness.data.task_types import TASK_TYPES, classify
from adarank.harness.data.tasks.base import Prompts, Split, Task
from adarank.harness.models import byte_tokenizer, tiny
from adarank.harness.run import microbatches
from adarank.harness.run.microbatches import check_microbatches, local_passes, pass_overhead, why_one_pass
from adarank.harness.run.prepare import Prepared, make_optimizer
from adarank.harness.run.train import train
from tests.harness.config.test_validate import settled
from tests.harness.run.test_train import Recorder, letters, setup, trained_state

CPU = torch.device("cpu")
TEXTS = ["ab" * (1 + i % 5) for i in range(12)]
REFERENCES = [["cd" * (1 + i % 3)] for i in range(12)]


def encoded(kind, targets=None):
    """Rows of 2 to 10 letters; targets: of a classification or a regression."""
    if kind == "classify":
        return encode(Split(TEXTS, None, targets), byte_tokenizer(), 16)
    rows = Prompts(TEXTS, REFERENCES)
    options = {"max_new_tokens": 8, "generate_rows": 0, "beams": 1}
    return TASK_TYPES[kind].encode(
        Task("x", rows, rows, None, (), ("loss",), 24, "f", kind, options), "train", byte_tokenizer()
    )


def gradient(kind, arch, rows, accumulation, passes):
    """Of the first step, in float64 without dropout, with the loss that is recorded."""
    torch.manual_seed(0)
    built = tiny(arch).build(2 if kind == "classify" else 0, TASK_TYPES[kind])
    adapters = adarank.adapt(built.model, "lora", rank=2, train=built.head)
    with torch.no_grad():
        for adapter in adapters.values():
            adapter.P.normal_(0, 0.1)  # else the gradient of Q is zero
    for module in built.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "activation_dropout", "dropout_p"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    config = TrainConfig(
        lr=1e-3, steps=1, batch_size=12 // accumulation, gradient_accumulation_steps=accumulation, microbatches=passes,
        max_grad_norm=0.0, log_every=1, precision="fp32", warmup=0,
    )  # fmt: skip
    gradients, log = [], Recorder()

    def look(optimizer, *_):
        gradients.extend(p.grad.flatten().clone() for g in optimizer.param_groups for p in g["params"])

    with register_optimizer_step_pre_hook(look):
        train(
            Prepared(built.model.double(), adapters, None), {"train": rows, "dev": rows}, Spec(method="x", train=config),
            ("accuracy" if kind == "classify" else "loss",), log, lambda _: None, lambda _: None, task_type=TASK_TYPES[kind],
        )  # fmt: skip
    return torch.cat(gradients), log.lines[0][2]["loss"]


@pytest.mark.parametrize(
    ("kind", "arch", "targets"),
    [
        ("classify", "bert", np.arange(12) % 2),
        ("generate", "llama", None),
        ("seq2seq", "bart", None),
    ],
)
def test_the_gradient_of_a_step_is_that_of_a_single_pass(kind, arch, targets):
    """The losses' weights are rows (classify) or tokens; with accumulation its parts are divided one by one."""
    rows = encoded(kind, targets)
    whole, loss = gradient(kind, arch, rows, 1, 1)
    assert whole.dtype == torch.float64
    assert whole.norm() > 1e-3
    for accumulation, passes in ((1, 3), (2, 4)):
        divided, same = gradient(kind, arch, rows, accumulation, passes)
        assert (divided - whole).norm() <= 1e-12 * whole.norm()
        assert same == pytest.approx(loss, rel=1e-12)
        assert not torch.equal(divided, whole)  # it was divided: the sums have another order


def test_one_pass_is_bit_for_bit_the_plain_loop_and_auto_leaves_tiny_models_whole():
    found = []
    for passes in (1, "auto"):
        prepared, splits, spec = setup(
            "lora", steps=6, max_grad_norm=0.0, warmup=0, lr_scheduler="constant", microbatches=passes
        )
        train(prepared, splits, spec, ("accuracy",), Recorder(), lambda _: None, lambda _: None)
        found.append(trained_state(prepared.model))
    prepared, _, _ = setup("lora")
    model = prepared.model.train()
    optimizer = make_optimizer(model, prepared.adapters, spec.train)
    torch.manual_seed(0)
    for rows in islice(training_order(256, 16, 0), 6):
        classify.loss(model, classify.collate(splits["train"], rows, CPU)).backward()
        optimizer.step()
        optimizer.zero_grad()
    plain = trained_state(model)
    assert all(torch.equal(plain[name], state[name]) for state in found for name in plain)


def test_auto_divides_the_rows_of_a_step_where_that_pays_and_drops_none(monkeypatch):
    monkeypatch.setattr(microbatches, "CPU_OVERHEAD", {"fp32": 1.0})  # a pass costs next to nothing
    passes = []

    def collate(rows, numbers, device):
        passes.append(numbers.tolist())
        return classify.collate(rows, numbers, device)

    prepared, splits, spec = setup("lora", steps=3, batch_size=8, gradient_accumulation_steps=2)
    assert spec.train.microbatches == "auto"
    texts = [text * (1 + i % 3) for i, text in enumerate(letters(256, 0).text)]
    splits["train"] = encode(Split(texts, None, letters(256, 0).label), byte_tokenizer(), 32)
    task_type = SimpleNamespace(**{**vars(classify), "collate": collate})
    train(prepared, splits, spec, ("accuracy",), Recorder(), lambda _: None, lambda _: None, task_type=task_type)
    assert len(passes) > 12
    assert max(map(len, passes)) < 8
    lengths = splits["train"].lengths
    assert all(len({*lengths[own]}) == 1 for own in passes)  # three lengths: no padding is left
    seen = np.concatenate(passes).reshape(6, 8)
    order = np.concatenate(list(islice(training_order(256, 16, 0), 3))).reshape(6, 8)
    assert np.array_equal(np.sort(seen), np.sort(order))


def test_every_process_has_as_many_passes_as_the_one_that_wants_most(monkeypatch):
    lengths = np.array([9, 9, 9, 9, 90, 5, 60, 5])
    monkeypatch.setattr(microbatches, "world", lambda: 2)
    found = {}
    for process in (0, 1):
        monkeypatch.setattr(microbatches, "rank", lambda process=process: process)
        found[process] = [own.tolist() for own in local_passes(np.arange(8), lengths, "auto", 10.0)]
    assert found[1] == [[4], [6], [5, 7]]
    assert len(found[0]) == 3
    assert sorted(np.concatenate(found[0])) == [0, 1, 2, 3]


def test_a_pass_costs_more_tokens_in_a_smaller_model_and_as_much_with_adapters():
    small, large = (tiny("bert", width=width, layers=1).build(2) for width in (32, 64))
    alone = [pass_overhead(b.model, CPU, "fp32") for b in (small, large)]
    assert alone[0] == pytest.approx(2 * alone[1])
    assert alone[0] == pytest.approx(25_000 / np.sqrt(np.mean([32 * 32] * 4 + [m.numel() for m in (
        small.model.bert.encoder.layer[0].intermediate.dense.weight, small.model.bert.encoder.layer[0].output.dense.weight
    )])))  # fmt: skip
    adarank.adapt(small.model, "svd", rank=2)
    assert pass_overhead(small.model, CPU, "fp32") == alone[0]
    assert pass_overhead(small.model, torch.device("cuda"), "bf16") > 1e6  # a tiny model is never divided there


@pytest.mark.parametrize(
    ("words", "kind", "says"),
    [
        (["train.packing=true"], "generate", "train.packing=true, which leaves no padding to save"),
        (["score=output"], "classify", "score=output, which averages layer inputs over whole passes"),
        ([], "extract", "task type extract, whose loss includes padded tokens"),
        ([], "images", "task type images, whose rows all have the same length"),
    ],
)
def test_rows_that_stay_together(words, kind, says):
    for passes in ("auto", 1):
        spec = settled(*words, f"train.microbatches={passes}")
        assert says in why_one_pass(spec, TASK_TYPES[kind])
        check_microbatches(spec, TASK_TYPES[kind])
    with pytest.raises(SettingError, match=r"train.microbatches must be auto or 1 with .*\(got 2\)") as error:
        check_microbatches(settled(*words, "train.microbatches=2"), TASK_TYPES[kind])
    assert says in str(error.value)
    assert why_one_pass(settled(), TASK_TYPES["classify"]) is None


def test_the_loss_of_spans_is_over_padding_so_that_its_rows_stay_together():
    torch.manual_seed(0)
    extract = TASK_TYPES["extract"]
    model = tiny("bert").build(2, extract).model.eval()
    ids = torch.randint(5, 50, (1, 6))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    longer = {name: torch.nn.functional.pad(tensor, (0, 4)) for name, tensor in batch.items()}
    spans = {"start_positions": torch.tensor([1]), "end_positions": torch.tensor([2])}
    losses = [extract.loss(model, {**inputs, **spans}).item() for inputs in (batch, longer)]
    assert abs(losses[1] - losses[0]) > 0.1
