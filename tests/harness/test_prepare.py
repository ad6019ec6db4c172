import math

import pytest

import adarank
from adarank.harness.models import tiny
from adarank.harness.prepare import describe_schedule, initial_rank, lr_factor, make_optimizer


def test_the_learning_rate_warms_up_and_decays():
    linear = lr_factor("linear", warmup=4, total=20)
    assert [linear(t) for t in (0, 3, 4, 12, 20)] == pytest.approx([0.2, 0.8, 1.0, 0.5, 0.0])
    cosine = lr_factor("cosine", warmup=0, total=10)
    assert [cosine(t) for t in (0, 5, 10)] == pytest.approx([1.0, 0.5, 0.0])
    assert lr_factor("constant", 0, 10)(9) == 1.0


@pytest.mark.parametrize("adapter", [None, "lora", "svd"])
def test_every_trained_parameter_is_in_exactly_one_group_and_vectors_do_not_decay(adapter):
    built = tiny("bert", width=32, layers=1).build(2)
    adapters = adarank.adapt(built.model, adapter, rank=2, train=built.head) if adapter else {}
    optimizer = make_optimizer(built.model, adapters, 1e-3, 0.1)
    ids = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in built.model.parameters() if p.requires_grad)
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    for name, p in built.model.named_parameters():
        if p.requires_grad:
            assert decays[id(p)] == (0.1 if p.ndim > 1 or name.endswith(".lam") else 0.0), name


def test_where_an_adaptive_method_starts():
    lora = {"allocator": None, "rank": 5, "init_rank": None}
    adalora = {**lora, "allocator": {"_target_": "adarank.allocators.global_top"}}
    assert initial_rank(lora) == 5
    assert initial_rank(adalora) == math.ceil(7.5)
    assert initial_rank({**adalora, "init_rank": 9}) == 9


def test_the_schedule_in_one_line():
    built = tiny("bert", width=32, layers=1).build(2)
    adapters = adarank.adapt(built.model, rank=3)
    schedule = adarank.schedules.cubic(18, 12, 10, 30, 101, 10)
    controller = adarank.RankController(adapters, score=adarank.scores.adalora(), schedule=schedule)
    assert describe_schedule(controller) == (
        "budget in triplets over 6 modules: 18 at step 0, 14 at step 25, 12 at step 50, 12 at step 75, 12 at step 100; "
        "7 allocations"
    )
