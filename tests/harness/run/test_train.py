"""The loop on a task that can be learned: which of two letters a text is made of."""

import math
import time
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

import adarank
from adarank.controller import Allocation
from adarank.harness.config.spec import Spec, TrainConfig
from adarank.harness.data.batches import encode, grouped_by_length, training_order
from adarank.harness.data.task_types import classify
from adarank.harness.data.task_types.classify import evaluate, task_loss
from adarank.harness.data.tasks.base import Split
from adarank.harness.models import byte_tokenizer, tiny
from adarank.harness.run.checkpoint import trained_tensors
from adarank.harness.run.prepare import Prepared, lr_factor, make_optimizer
from adarank.harness.run.train import Diverged, allocation_record, is_settled, train
from tests.representatives import representatives


class Recorder:
    """A log that keeps what it is told."""

    def __init__(self):
        self.lines, self.allocations = [], []

    def metrics(self, step, split, values):
        self.lines.append((step, split, values))

    def allocation(self, record):
        self.allocations.append(record)


def trained_state(model):
    """A copy of what training changes."""
    return {name: tensor.clone() for name, tensor in trained_tensors(model).items()}


def letters(rows, seed):
    draw = np.random.default_rng(seed)
    label = draw.integers(0, 2, rows)
    return Split(["".join(draw.choice(list("ab" if y else "cd"), 6)) for y in label], None, label)


def setup(method, steps=40, seed=0, compaction="off", gamma=0.1, **changes):
    torch.manual_seed(seed)
    built = tiny("bert", width=32, layers=2).build(2)
    adapters, controller = {}, None
    if method != "full":
        kind = "lora" if method == "lora" else "svd"
        adapters = adarank.adapt(built.model, kind, rank=6 if method == "adalora" else 4, train=built.head)
    if method == "adalora":
        n = len(adapters)
        controller = adarank.RankController(
            adapters,
            score=adarank.scores.adalora(),
            schedule=adarank.schedules.cubic(6 * n, 4 * n, t_i=5, t_f=12, total=steps, interval=2),
            penalty=adarank.penalties.orthogonality(gamma),
            compaction=compaction,
        )
    lr = {"full": 1e-3, "lora": 5e-3, "adalora": 2e-2}[method]
    numbers = {
        "lr": lr,
        "steps": steps,
        "batch_size": 16,
        "warmup": 2,
        "eval_every": 10,
        "log_every": 5,
        "precision": "fp32",
    }
    spec = Spec(method=method, seed=seed, train=TrainConfig(**{**numbers, **changes}))
    splits = {
        n: encode(letters(r, i), built.tokenizer, 16)
        for i, (n, r) in enumerate([("train", 256), ("dev", 64), ("test", 64)])
    }
    return Prepared(built.model, adapters, controller), splits, spec


@pytest.mark.parametrize("method", representatives(["adalora", "lora", "full"], 1))
def test_every_method_learns_it(method):
    prepared, splits, spec = setup(method, steps=80)
    log, kept, beats = Recorder(), [], []
    outcome = train(prepared, splits, spec, ("accuracy",), log, beats.append, kept.append)
    assert outcome.test > 0.9
    assert kept == [prepared.model]
    assert beats[-1] == 80
    dev = [(step, values) for step, split, values in log.lines if split == "dev"]
    assert [step for step, _ in dev] == list(range(10, 81, 10))
    assert outcome.last == dev[-1][1]["accuracy"]
    if method == "adalora":
        settled = [values["accuracy"] for step, values in dev if step > 80 - 12]
        assert outcome.best == max(settled)
        assert outcome.best_step > 80 - 12
        assert sum(adarank.ranks(prepared.model).values()) == 4 * 12
        assert [r["step"] for r in log.allocations] == prepared.controller.schedule.allocations()
        ranks = [(values["budget"], values["mean_rank"]) for _, split, values in log.lines if split == "train"]
        assert (ranks[0], ranks[-1]) == ((6 * 12, 6.0), (4 * 12, 4.0))
    else:
        assert outcome.best == max(values["accuracy"] for _, values in dev)


def test_how_far_the_factors_are_from_orthonormal_is_recorded_while_they_train():
    prepared, splits, spec = setup("adalora", steps=40)
    expected = []

    class Looking(Recorder):
        def metrics(self, step, split, values):
            super().metrics(step, split, values)
            factors = [f.detach().double().numpy() for a in prepared.adapters.values() for f in (a.P, a.Q)]
            expected.append(np.mean([np.linalg.norm(f @ f.T - np.eye(len(f))) for f in factors]))

    log = Looking()
    train(prepared, splits, spec, ("accuracy",), log, lambda _: None, lambda _: None)
    found = [(v["orthogonality"], e) for (_, split, v), e in zip(log.lines, expected, strict=True) if split == "train"]
    assert len(found) == 8
    np.testing.assert_allclose(*zip(*found, strict=True), rtol=1e-5)
    assert all("orthogonality" not in values for _, split, values in log.lines if split != "train")
    prepared, splits, spec = setup("lora", steps=5)
    log = Recorder()
    train(prepared, splits, spec, ("accuracy",), log, lambda _: None, lambda _: None)
    assert all("orthogonality" not in values for _, _, values in log.lines)


def test_test_is_measured_at_the_best_checkpoint_which_is_left_in_the_model():
    prepared, splits, spec = setup("lora", steps=40, eval_every=5)
    states = {}

    def keep(model):
        states["kept"] = trained_state(model)

    log = Recorder()
    outcome = train(prepared, splits, spec, ("accuracy",), log, lambda _: None, keep)
    step, split, values = log.lines[-1]
    assert (step, split, values["accuracy"]) == (outcome.best_step, "test", outcome.test)
    again = evaluate(prepared.model, splits["dev"], ("accuracy",), spec.train, torch.device("cpu"))
    assert again["accuracy"] == outcome.best
    assert all(torch.equal(t, trained_state(prepared.model)[n]) for n, t in states["kept"].items())


def test_best_and_last_checkpoint_have_test_values_of_their_own():
    """Dev's labels are the wrong way round, so that the first checkpoint is the best there and the worst on test."""
    prepared, splits, spec = setup("lora", steps=30)
    dev = splits["dev"]
    splits["dev"] = type(dev)(dev.tokens, 1 - dev.label, dev.pad)
    log = Recorder()
    outcome = train(prepared, splits, spec, ("accuracy",), log, lambda _: None, lambda _: None)
    of_dev, of_test = ({s: v["accuracy"] for s, split, v in log.lines if split == name} for name in ("dev", "test"))
    assert outcome.best_step == max(of_dev, key=of_dev.get) < 30
    assert (outcome.best, outcome.last) == (max(of_dev.values()), of_dev[30])
    assert (outcome.test, outcome.test_last) == (of_test[outcome.best_step], of_test[30])
    assert outcome.test < 0.6 < 0.9 < outcome.test_last
    assert outcome.tested["accuracy"] == outcome.test
    found = outcome.predictions
    assert found.keys() == {f"{name}{suffix}" for name in ("label", "prediction", "score") for suffix in ("", "_best")}
    for suffix, value in (("", outcome.test_last), ("_best", outcome.test)):
        assert np.array_equal(found[f"label{suffix}"], splits["test"].label)
        assert np.mean(found[f"prediction{suffix}"] == found[f"label{suffix}"]) == value
    now = evaluate(prepared.model, splits["test"], ("accuracy",), spec.train, torch.device("cpu"))
    assert now == outcome.tested


def test_the_loop_is_the_one_written_out():
    """Accumulation, clipping, warm-up and decay: every step's loss depends on all that the steps before it did."""
    changes = {"batch_size": 8, "gradient_accumulation_steps": 2, "max_grad_norm": 0.5, "weight_decay": 0.1}
    prepared, splits, spec = setup("lora", steps=7, eval_every=3, log_every=1, **changes)
    log = Recorder()
    outcome = train(prepared, splits, spec, ("accuracy",), log, lambda _: None, lambda _: None)
    assert 0 < outcome.step_ms * 7 <= 2 * 1000 * outcome.train_s  # a median is at most twice the mean
    lines = [(values["loss"], values["lr"]) for _, split, values in log.lines if split == "train"]

    prepared, _, _ = setup("lora")
    model, factor, expected = prepared.model.train(), lr_factor(spec.train), []
    optimizer = make_optimizer(model, prepared.adapters, spec.train)
    torch.manual_seed(0)
    for step, rows in enumerate(islice(training_order(256, 16, 0), 7)):
        losses = [classify.loss(model, classify.collate(splits["train"], part, "cpu")) for part in np.split(rows, 2)]
        mean = sum(losses) / 2
        mean.backward()
        for group in optimizer.param_groups:
            group["lr"] = spec.train.lr * factor(step)
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 0.5)
        optimizer.step()
        optimizer.zero_grad()
        expected.append((mean.item(), spec.train.lr * factor(step + 1)))  # the rate of the step to come
    np.testing.assert_allclose(lines, expected, rtol=1e-5)


def test_a_mask_is_passed_only_where_a_row_is_padded():
    prepared, splits, spec = setup("lora", steps=3, eval_every=3)
    splits["dev"] = encode(Split(["ab", "cdcd"] * 8, None, np.array([0, 1] * 8)), byte_tokenizer(), 16)
    masked = {True: [], False: []}  # training, evaluation
    prepared.model.register_forward_pre_hook(
        lambda model, args, inputs: masked[model.training].append("attention_mask" in inputs), with_kwargs=True
    )
    train(
        prepared, {**splits, "test": splits["train"]}, spec, ("accuracy",), Recorder(), lambda _: None, lambda _: None
    )
    assert masked == {True: [False] * 3, False: [True] + [False] * 8}  # dev, then test


def test_of_equally_good_checkpoints_the_first_is_kept():
    prepared, splits, spec = setup("lora", steps=6, lr=1e-30, eval_every=2)
    outcome = train(prepared, splits, spec, ("accuracy",), Recorder(), lambda _: None, lambda _: None)
    assert outcome.best == outcome.last
    assert outcome.best_step == 2


def test_predictions_of_a_best_checkpoint_that_is_the_last_are_kept_once():
    prepared, splits, spec = setup("lora", steps=4, eval_every=4)
    outcome = train(prepared, splits, spec, ("accuracy",), Recorder(), lambda _: None, lambda _: None)
    assert outcome.predictions.keys() == {"label", "prediction", "score"}
    assert np.mean(outcome.predictions["prediction"] == splits["test"].label.numpy()) == outcome.test
    prepared, splits, spec = setup("lora", steps=4, eval_every=4)
    del splits["test"]
    outcome = train(prepared, splits, spec, ("accuracy",), Recorder(), lambda _: None, lambda _: None)
    assert (outcome.test, outcome.test_last, outcome.predictions) == (None, None, {})


def test_where_no_checkpoint_can_be_ranked_the_first_is_kept():
    seconds = []

    def evaluate(*arguments, **more):
        start = time.perf_counter()
        values = classify.evaluate(*arguments, **more)
        seconds.append(time.perf_counter() - start)
        return {**values, "accuracy": math.nan}

    prepared, splits, spec = setup("lora", steps=4, eval_every=2)
    task_type = SimpleNamespace(**{**vars(classify), "evaluate": evaluate})
    outcome = train(
        prepared, splits, spec, ("accuracy",), Recorder(), lambda _: None, lambda _: None, task_type=task_type
    )
    assert outcome.best_step == 2
    assert math.isnan(outcome.best)
    assert outcome.eval_s >= sum(seconds)


@pytest.mark.parametrize("method", representatives(["adalora", "lora"], 1))
def test_no_step_s_gradient_is_longer_than_the_limit_the_penalty_s_included(method):
    """With a penalty that alone would exceed it a hundred times."""
    lengths = []

    def look(optimizer, *_):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        lengths.append(torch.cat([g.flatten() for g in gradients]).norm().item())

    found = {}
    for limit in (0.01, 0.0):
        prepared, splits, spec = setup(
            method, steps=18, gamma=1e3, max_grad_norm=limit, gradient_accumulation_steps=2, batch_size=8
        )
        with register_optimizer_step_pre_hook(look):
            train(prepared, splits, spec, ("accuracy",), Recorder(), lambda _: None, lambda _: None)
        found[limit], lengths = lengths, []
    assert found[0.01] == pytest.approx([0.01] * 18, rel=1e-3)
    assert min(found[0.0]) > (10 if method == "adalora" else 0.02)  # 0 switches clipping off


@pytest.mark.parametrize("group", [False, True])
def test_the_rows_of_every_step_are_those_of_the_run_s_seed(group):
    """`batch_size` · `gradient_accumulation_steps` rows in the order of training_order, or regrouped by length."""
    seen = []

    def collate(rows, numbers, device):
        seen.extend(numbers.tolist())
        return classify.collate(rows, numbers, device)

    task_type = SimpleNamespace(**{**vars(classify), "collate": collate})
    prepared, splits, spec = setup(
        "lora", steps=9, seed=3, group_by_length=group, batch_size=8, gradient_accumulation_steps=2
    )
    texts = [text * (1 + i % 3) for i, text in enumerate(letters(256, 0).text)]
    splits["train"] = encode(Split(texts, None, letters(256, 0).label), byte_tokenizer(), 32)
    train(prepared, splits, spec, ("accuracy",), Recorder(), lambda _: None, lambda _: None, task_type=task_type)
    order = training_order(256, 16, 3)
    order = grouped_by_length(order, splits["train"].lengths, 3) if group else order
    assert seen == np.concatenate(list(islice(order, 9))).tolist()


def test_dropout_draws_from_the_run_s_seed_whatever_was_drawn_before():
    losses = []
    for drawn in (0, 5):
        prepared, splits, spec = setup("lora", steps=4, log_every=1)
        torch.rand(drawn)
        log = Recorder()
        train(prepared, splits, spec, ("accuracy",), log, lambda _: None, lambda _: None)
        losses.append([values["loss"] for _, split, values in log.lines if split == "train"])
    assert prepared.model.config.hidden_dropout_prob > 0
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_a_run_is_reproducible_and_its_seed_matters():
    losses = []
    for seed in (0, 0, 1):
        prepared, splits, spec = setup("adalora", steps=30, seed=seed)
        log = Recorder()
        train(prepared, splits, spec, ("accuracy",), log, lambda _: None, lambda _: None)
        losses.append([values["loss"] for _, split, values in log.lines if split == "train"])
    assert losses[0] == losses[1] != losses[2]


def test_a_loss_that_is_no_number_ends_the_run():
    prepared, splits, spec = setup("full", lr=1e30, max_grad_norm=0.0, warmup=0, lr_scheduler="constant")
    with pytest.raises(Diverged, match="the loss became"):
        train(prepared, splits, spec, ("accuracy",), Recorder(), lambda _: None, lambda _: None)


def test_a_loss_that_is_no_number_after_the_last_step_ends_the_run_too():
    """No training loss follows the last update, so that such a run was called finished, with metrics that were null."""
    prepared, splits, spec = setup("full", steps=1, lr=1e30, max_grad_norm=0.0, warmup=0)
    with pytest.raises(Diverged, match=r"the loss on dev became nan by step 1; try a train.lr below 1e\+30"):
        train(prepared, splits, spec, ("accuracy",), Recorder(), lambda _: None, lambda _: None)


@pytest.mark.usefixtures("safe_bf16")
def test_bf16_autocast_trains_fp32_weights():
    prepared, splits, spec = setup("adalora", steps=30, precision="bf16")
    log = Recorder()
    train(prepared, splits, spec, ("accuracy",), log, lambda _: None, lambda _: None)
    assert all(math.isfinite(values["loss"]) for _, _, values in log.lines)
    assert prepared.controller.bank.weight.dtype == torch.float32


def test_evaluation_leaves_out_pruned_triplets():
    prepared, splits, spec = setup("adalora")
    before = evaluate(prepared.model, splits["dev"], ("accuracy",), spec.train, torch.device("cpu"))["loss"]
    bank = prepared.controller.bank
    bank.lam.fill_(5.0)
    changed = evaluate(prepared.model, splits["dev"], ("accuracy",), spec.train, torch.device("cpu"))["loss"]
    bank.mask.zero_()
    assert evaluate(prepared.model, splits["dev"], ("accuracy",), spec.train, torch.device("cpu"))[
        "loss"
    ] == pytest.approx(before)
    assert changed != pytest.approx(before)


def test_losses():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 2
    assert task_loss(logits, torch.tensor([0, 1])).item() == pytest.approx(expected)
    assert task_loss(torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 1.0])).item() == pytest.approx(2.5)


@pytest.mark.parametrize("compaction", representatives(["progressive", "final"], 1))
def test_compaction_gives_the_same_run_in_less_memory(compaction):
    found = {}
    for option in ("off", compaction):
        prepared, splits, spec = setup("adalora", steps=40, compaction=option)
        log = Recorder()
        outcome = train(prepared, splits, spec, ("accuracy",), log, lambda _: None, lambda _: None)
        found[option] = [line for line in log.lines if line[1] == "dev"], outcome.test
        held = sum(a.rank for a in prepared.adapters.values())
        assert held == (72 if option == "off" else 48)
        assert sum(adarank.ranks(prepared.model).values()) == 48
    if compaction == "final":
        (a, test_a), (b, test_b) = found.values()
        assert test_a == pytest.approx(test_b, abs=0.05)
        assert [v["loss"] for _, _, v in a] == pytest.approx([v["loss"] for _, _, v in b], rel=0.05)


@pytest.mark.parametrize(("unit", "slack"), [("triplets", 70 - 3), ("parameters", 70 - 60)])
def test_the_record_of_an_allocation(unit, slack):
    scores = torch.tensor([0.1, 0.9, 0.4, 0.2, 0.7, 0.3, 0.8])
    module, mask = torch.tensor([0, 0, 0, 1, 1, 1, 1]), torch.tensor([0, 1, 0, 0, 1, 0, 1], dtype=torch.bool)
    allocation = Allocation(9, 70, unit, mask.sum(), torch.tensor(60), scores, mask, module, ("a", "b"))
    record = allocation_record(allocation)
    quantiles = record.pop("score_quantiles")
    assert record == {
        "step": 9, "budget": 70, "unit": unit, "kept": 3, "parameters": 60, "slack": slack, "ranks": {"a": 1, "b": 2},
    }  # fmt: skip
    for name, part in (("a", scores[:3]), ("b", scores[3:])):
        assert quantiles[name] == pytest.approx(np.quantile(part.numpy(), [0, 0.25, 0.5, 0.75, 1]).tolist())


def test_only_a_final_budget_is_settled():
    prepared, _, _ = setup("adalora")
    assert not is_settled(prepared.controller)
    assert is_settled(None)
