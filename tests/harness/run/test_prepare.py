import math

import pytest
import torch

import adarank
from adarank.errors import SettingError
from adarank.harness.config.spec import TrainConfig
from adarank.harness.data.task_types import TASK_TYPES
from adarank.harness.data.tasks.base import Task
from adarank.harness.models import tiny
from adarank.harness.run.prepare import describe_schedule, lr_factor, make_optimizer, prepare
from adarank.harness.run.resolve import build
from tests.harness.config.test_validate import settled


def curve(lr_scheduler, warmup, total):
    return lr_factor(TrainConfig(lr=1.0, lr_scheduler=lr_scheduler, warmup=warmup, steps=total))


def optimizer_of(model, adapters, head=(), **settings):
    return make_optimizer(model, adapters, TrainConfig(lr=1e-3, weight_decay=0.1, **settings), head)


def test_the_learning_rate_warms_up_and_decays():
    linear = curve("linear", warmup=4, total=20)
    assert [linear(t) for t in (0, 3, 4, 12, 20)] == pytest.approx([0.2, 0.8, 1.0, 0.5, 0.0])
    cosine = curve("cosine", warmup=0, total=10)
    assert [cosine(t) for t in (0, 5, 10)] == pytest.approx([1.0, 0.5, 0.0])
    assert curve("constant", 0, 10)(9) == 1.0


@pytest.mark.parametrize("adapter", [None, "lora", "svd"])
def test_every_trained_parameter_is_in_exactly_one_group_and_vectors_do_not_decay(adapter):
    built = tiny("bert", width=32, layers=1).build(2)
    adapters = adarank.adapt(built.model, adapter, rank=2, train=built.head) if adapter else {}
    optimizer = optimizer_of(built.model, adapters)
    ids = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in built.model.parameters() if p.requires_grad)
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    for name, p in built.model.named_parameters():
        if p.requires_grad:
            assert decays[id(p)] == (0.1 if p.ndim > 1 or name.endswith(".lam") else 0.0), name


def test_where_an_adaptive_method_starts():
    assert settled("method=lora", "rank=5").initial_rank == 5
    assert settled("method=adalora", "rank=5").initial_rank == math.ceil(7.5)
    assert settled("method=adalora", "rank=5", "init_rank=9").initial_rank == 9
    assert settled("method=increlora", "rank=5").held_rank == 15  # max_rank_factor 3


@pytest.mark.parametrize(
    ("words", "scale"), [(["init_rank=2"], 12 / 8), (["init_rank=8"], 12 / 8), (["adapter.rslora=true"], 12 / 8**0.5)]
)
def test_a_method_that_grows_scales_by_its_final_rank_and_not_by_what_it_holds(words, scale):
    settings = settled("method=increlora", "rank=8", "max_rank_factor=2", "adapter.alpha=12", *words)
    prepared = prepare(tiny("bert", width=32, layers=1).build(2), "all-linear", settings, torch.device("cpu"))
    assert {(a.rank, a.scale) for a in prepared.adapters.values()} == {(16, scale)}


def test_a_final_budget_is_at_most_what_the_matrices_hold():
    settings = settled("method=increlora", "init_rank=8", "rank=40", "max_rank_factor=1.5")
    prepared = prepare(tiny("bert", width=32, layers=1).build(2), "all-linear", settings, torch.device("cpu"))
    assert {a.rank for a in prepared.adapters.values()} == {32}
    assert (prepared.controller.schedule.initial, prepared.controller.schedule.final) == (6 * 8, 6 * 32)


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        (
            adarank.schedules.cubic(18, 12, 10, 30, 101, 10),
            "18 at step 0, 14 at step 25, 12 at step 50, 12 at step 75, 12 at step 100; 7 allocations",
        ),
        (
            adarank.schedules.linear(18, 12, 10, 30, 101, 10),
            "18 at step 0, 16 at step 25, 14 at step 50, 12 at step 75, 12 at step 100; 7 allocations",
        ),
        (
            adarank.schedules.cosine(18, 12, 10, 30, 101, 10),
            "18 at step 0, 17 at step 25, 13 at step 50, 12 at step 75, 12 at step 100; 7 allocations",
        ),
        (
            adarank.schedules.one_shot(18, 12, 50, 101),
            "18 at step 0, 18 at step 25, 12 at step 50, 12 at step 75, 12 at step 100; 1 allocation",
        ),
        (
            adarank.schedules.constant(12, 12, 10, 30, 101, 10),
            "12 at step 0, 12 at step 25, 12 at step 50, 12 at step 75, 12 at step 100; 7 allocations",
        ),
        (
            adarank.schedules.growing(6, 18, 10, 30, 101, 10),
            "6 at step 0, 8 at step 25, 13 at step 50, 18 at step 75, 18 at step 100; 7 allocations",
        ),
    ],
    ids=["cubic", "linear", "cosine", "one_shot", "constant", "growing"],
)
def test_the_schedule_in_one_line(schedule, says):
    built = tiny("bert", width=32, layers=1).build(2)
    adapters = adarank.adapt(built.model, rank=3)
    controller = adarank.RankController(
        adapters, score=adarank.scores.adalora(), schedule=schedule, pruned_triplets="frozen"
    )
    assert describe_schedule(controller) == f"budget in triplets over 6 modules: {says}"
    controller.allocator = adarank.allocators.nonzero()
    ranks = f"no budget: training decides the ranks of 6 modules; {says.rpartition('; ')[2]}"
    assert describe_schedule(controller) == ranks


@pytest.mark.parametrize(("seed", "own"), [(0, []), (5, []), (3, ["score.seed=3"])])
def test_the_random_score_draws_from_the_run_s_seed_or_its_own(seed, own):
    settings = settled("score=random", *(own or [f"seed={seed}"]), "rank=2", "train.steps=20")
    built = tiny("bert", width=32, layers=1).build(2)
    prepared = prepare(built, "all-linear", settings, torch.device("cpu"))
    expected = adarank.scores.random(seed).init(prepared.controller.bank)["number"]
    assert torch.equal(prepared.controller.buffers["number"], expected)


@pytest.mark.parametrize(("adapter", "ratio"), [(None, 1.0), ("lora", 1.0), ("svd", 16.0)])
def test_head_lr_is_the_rate_of_the_new_head_alone(adapter, ratio):
    built = tiny("bert", width=32, layers=1).build(2)
    adapters = adarank.adapt(built.model, adapter, rank=2, train=built.head) if adapter else {}
    optimizer = optimizer_of(built.model, adapters, built.head, head_lr=0.02, loraplus_lr_ratio=ratio)
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    trained = {name: p for name, p in built.model.named_parameters() if p.requires_grad}
    assert len(rates) == len(trained)
    in_head = {name for name in trained if name.startswith(tuple(f"{module}." for module in built.head))}
    assert in_head
    for name, parameter in trained.items():
        rate = 0.02 if name in in_head else 1e-3 * (ratio if name.endswith(".P") else 1.0)
        assert rates[id(parameter)][0] == pytest.approx(rate), name
        assert (rates[id(parameter)][1] == 0.0) == (parameter.ndim == 1 and not name.endswith(".lam")), name


def test_head_lr_is_refused_where_there_is_no_new_head():
    built = tiny("llama", width=32, layers=1).build(0, TASK_TYPES["generate"])
    settings = settled("method=lora", "train.head_lr=0.01")
    with pytest.raises(SettingError, match=r"train.head_lr must be null with .*Causal.*no new head \(got 0.01\)"):
        prepare(built, "all-linear", settings, torch.device("cpu"))


@pytest.mark.parametrize("ratio", [16.0, 0.5])
@pytest.mark.parametrize("adapter", ["lora", "svd"])
def test_lora_plus_gives_every_p_its_own_rate_and_the_curve_keeps_the_ratio(adapter, ratio):
    built = tiny("bert", width=32, layers=1).build(2)
    adapters = adarank.adapt(built.model, adapter, rank=2, train=built.head)
    optimizer = optimizer_of(built.model, adapters, loraplus_lr_ratio=ratio)
    ids = [id(p) for group in optimizer.param_groups for p in group["params"]]
    trained = {id(p): name for name, p in built.model.named_parameters() if p.requires_grad}
    assert sorted(ids) == sorted(trained)
    fast = {name for name in trained.values() if name.endswith(".P")}
    assert len(fast) == len(adapters)
    decays = {trained[id(p)]: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert all(decays[name] == 0.1 for name in fast)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, curve("linear", 3, 10))
    for step in range(8):
        factor = (step + 1) / 4 if step < 3 else (10 - step) / 7
        rates = {trained[id(p)]: g["lr"] for g in optimizer.param_groups for p in g["params"]}
        for name, rate in rates.items():
            assert rate == pytest.approx(1e-3 * factor * (ratio if name in fast else 1.0)), (step, name)
        for p in built.model.parameters():
            p.grad = torch.ones_like(p) if p.requires_grad else None
        before = {name: p.detach().clone() for name, p in built.model.named_parameters()}
        optimizer.step()
        moved = {n: (p - before[n]).abs().max().item() for n, p in built.model.named_parameters() if p.requires_grad}
        if step == 0:  # AdamW's first step is lr in every entry, but for the decay
            slow = next(name for name in moved if name.endswith(".Q"))
            assert moved[next(iter(fast))] / moved[slow] == pytest.approx(ratio, rel=0.1)
        scheduler.step()


@pytest.mark.parametrize("method", ["houlsby", "bitfit"])
def test_without_triplets_biases_do_not_decay(method):
    built = tiny("bert", width=32, layers=1).build(2)
    if method == "bitfit":
        adarank.bitfit(built.model, built.head)
    else:
        adarank.bottlenecks(built.model, ["output.dense"], train=built.head)
    optimizer = optimizer_of(built.model, {})
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    names = {name: decays[id(p)] for name, p in built.model.named_parameters() if p.requires_grad}
    assert len(names) == len(decays)
    assert all(decay == (0.0 if name.endswith("bias") else 0.1) for name, decay in names.items())


def test_targets_that_reach_into_the_head_leave_it_out_and_the_budget_counts_without_it():
    torch.manual_seed(0)
    built = tiny("roberta", width=32, layers=1).build(2)
    ready = prepare(
        built, ["query", "dense"], settled("method=adalora", "rank=2", "train.steps=50"), torch.device("cpu")
    )
    assert len(ready.adapters) == 4
    assert not any(name.startswith("classifier") for name in ready.adapters)
    assert ready.controller.schedule.final == 2 * 4


def test_a_built_model_knows_the_names_of_its_classes():
    task = Task("t", None, None, None, ("bad", "good"), ("accuracy",), 16, "f")
    built = build(settled("method=lora"), task, tiny("bert", width=32, layers=1), torch.device("cpu"))
    assert built.model.config.id2label == {0: "bad", 1: "good"}
    assert built.model.config.label2id == {"bad": 0, "good": 1}
