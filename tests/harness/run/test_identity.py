"""A run's name: what enters it, what never does, and that it stays what it was."""

from dataclasses import MISSING, fields, replace
from functools import cache

import numpy as np
import pytest

from adarank.harness.config.spec import NEVER, BudgetConfig, Piece, Spec, TrainConfig, identity_default
from adarank.harness.data.tasks.base import Split, Task
from adarank.harness.models import Base
from adarank.harness.run import identity
from adarank.harness.run.ranks_from import RankMap
from tests.harness.config import test_validate
from tests.representatives import representatives

settled = cache(test_validate.settled)
ROWS = Split(["a"], None, np.zeros(1, np.int64))
OLD_DEFAULTS = (
    "train.eval_every=0.1",
    "train.microbatches=1",
)  # users' defaults that have changed since the names were fixed
BASE = Base("m", "model", "bert", None)
TASK = Task("t", ROWS, ROWS, None, ("x", "y"), ("accuracy",), 64, "abc")


@cache
def by_default():
    return decides()


def decides(*overrides, rank_map=None, task=TASK, targets="all-linear", base=BASE, dtype="fp32"):
    settings = [word for word in OLD_DEFAULTS if not any(o.startswith(word.partition("=")[0]) for o in overrides)]
    return deciding(settled(*settings, *overrides), rank_map, task, targets, base, dtype)


def deciding(spec, rank_map=None, task=TASK, targets="all-linear", base=BASE, dtype="fp32"):
    if spec.train.precision == "auto":
        spec = replace(spec, train=replace(spec.train, precision="fp32"))
    targets = targets if spec.takes("targets") else None
    return identity.decides(spec, task, base, dtype, targets, rank_map)


def test_only_what_differs_from_the_identity_defaults_enters():
    rows = {"fingerprint": "abc", "metrics": ["accuracy"], "max_length": 64, "task_type": "classify"}
    lr = settled("method=full").train.lr
    assert decides("method=full") == {"train": {"lr": lr}, "task": rows, "model": "model"}
    assert decides("method=adalora", "train.max_grad_norm=0.5") == {
        "adapter": {"_target_": "adarank.adapt", "rank": 12, "targets": "all-linear"},
        "init": {"_target_": "adarank.inits.default"},
        "score": {"_target_": "adarank.scores.adalora"},
        "allocator": {"_target_": "adarank.allocators.global_top"},
        "schedule": {"_target_": "adarank.schedules.cubic", "t_i": 100, "t_f": 300, "interval": 10},
        "penalty": {"_target_": "adarank.penalties.orthogonality"},
        "budget": {"initial_rank": 12, "rank": 8},
        "train": {"lr": 0.01, "max_grad_norm": 0.5},
        "task": rows,
        "model": "model",
    }


def test_the_names_of_today_stay():
    """What is written down here was computed when the rule was made: a change renames every run that anyone has."""
    found = {
        method: identity.digest(decides(f"method={method}")) for method in ("full", "lora", "adalora", "increlora")
    }
    assert found == {
        "full": "3b8d7f31ce", "lora": "a7e04253c5", "adalora": "c2728a63dd", "increlora": "eddf31516f",
    }  # fmt: skip


@pytest.mark.parametrize(
    "words",
    representatives([
        ["out=elsewhere"], ["tracker=wandb"], ["force=true"], ["retry=failed"], ["checkpoint_seconds=1"],
        ["train.gradient_checkpointing=true"], ["train.eval_every=100"], ["train.warmup=60"], ["init_rank=12"],
        ["score.beta1=0.85"], ["budget.unit=triplets"], ["seed=7"], ["targets=qv"], ["arm=adalora@8", "test=true"],
    ], 4),
)  # fmt: skip
def test_what_decides_no_result_or_says_the_same_enters_no_name(words):
    assert decides(*words) == by_default()


@pytest.mark.parametrize(
    "words",
    representatives([
        ["rank=4"], ["init_rank=16"], ["variant=paper"], ["compaction=final"], ["pruned_triplets=frozen"],
        ["svd_before_allocation=true"], ["train.steps=500"], ["train.eval_every=0.2"], ["train.batch_size=16"],
        ["train.lr_scheduler=cosine"], ["score.beta1=0.9"], ["score=magnitude"], ["schedule.t_i=0.2"],
        ["penalty.gamma=0.2"], ["penalty=none"], ["adapter.alpha=16"], ["budget.unit=parameters"],
        ["compaction=progressive"], ["train.group_by_length=true"], ["train.microbatches=2"], ["test=false"],
    ], 6),
)  # fmt: skip
def test_what_decides_a_result_enters_its_name(words):
    assert identity.digest(decides(*words)) != identity.digest(by_default())


def another(setting, value):
    """A valid value of a setting, other than `value`."""
    if choices := setting.metadata.get("choices"):
        return next(choice for choice in reversed(choices) if choice != value)
    if isinstance(value, Piece):
        return replace(value, settings={**value.settings, "one_more": 1})
    if isinstance(value, BudgetConfig):
        return replace(value, unit=another(fields(value)[0], value.unit))
    if isinstance(value, TrainConfig):
        return replace(value, lr=2 * value.lr)
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        return value / 2 or 0.5
    return {int: lambda: value + 1, str: lambda: f"{value}x", list: lambda: [*value, "x"]}[type(value)]()


def test_every_training_setting_enters_the_name_but_those_that_decide_no_result():
    spec = settled("train.precision=fp32", "train.observe_scores=5", "train.head_lr=0.01")
    before = identity.digest(deciding(spec))

    def named(f):
        train = replace(spec.train, **{f.name: another(f, getattr(spec.train, f.name))})
        return identity.digest(deciding(replace(spec, train=train))) != before

    nothing = {"capture", "gradient_checkpointing", "shard", "observe_scores", "eval_share"}  # the last: below
    assert {f.name for f in fields(TrainConfig) if not named(f)} == nothing


def test_every_setting_of_a_run_enters_the_name_but_those_that_decide_no_result_or_enter_by_their_content():
    """On a run in which each has an effect: DoRA's ranks that grow, are permuted, and are compacted away."""
    piece = Piece("init", "adarank.inits.default", {})
    spec = replace(
        settled("method=increlora", "adapter=svd_dora", "init_rank=6", *OLD_DEFAULTS),
        **{
            "compaction": "progressive",
            "ranks_from": "/a",
            "ranks_shuffle": "all",
            "quantization": piece,
            "tracker": piece,
        },
        **{"target_modules": ["query"], "holdout": 5, "arm": "adalora@8"},
    )
    rank_map = RankMap(8, 6, {"a": 3})
    before = identity.digest(deciding(spec, rank_map))

    def named(f):
        changed = replace(spec, **{f.name: another(f, getattr(spec, f.name))})
        return identity.digest(deciding(changed, rank_map)) != before

    nothing = {"method", "arm", "out", "tiny", "force", "retry", "fail_fast", "checkpoint_seconds", "tracker"}
    content = {"task", "model", "targets", "target_modules", "ranks_from", "holdout", "seed"}
    assert {f.name for f in fields(Spec) if not named(f)} == nothing | content


def test_from_t_i_enters_a_name_where_it_moves_an_allocation():
    """A multiple of the interval is every run that was named before the setting was."""
    always, never = (("method=flexlora", f"schedule.from_t_i={value}") for value in ("true", "false"))
    assert decides(*always) == decides(*never)  # t_i = 100, interval 10
    assert identity.digest(decides(*always)) == "114f6a5611"  # as before the setting
    moved = ("schedule.t_i=105",)
    assert decides(*always, *moved)["schedule"] == {**decides(*never, *moved)["schedule"], "from_t_i": True}


def test_elalora_s_former_defaults_keep_their_name():
    old = decides("method=elalora", "allocator.candidates_per_module=1", "allocator.min_rank_grows=true")
    assert identity.digest(old) == "1fb0cd2eb4" != identity.digest(decides("method=elalora"))


def test_what_has_no_effect_enters_no_name():
    assert decides("method=full", "rank=4", "targets=qv") == decides("method=full")
    assert decides("method=lora", "budget.unit=parameters") == decides("method=lora")
    full = settled("method=full")
    assert deciding(replace(full, train=replace(full.train, loraplus_lr_ratio=4.0))) == deciding(full)
    rank_map = RankMap(8, 12, {"a": 3})
    plain = decides("ranks_from=/one", rank_map=rank_map)
    assert plain == decides("ranks_from=/other", rank_map=rank_map)
    assert plain != decides("ranks_from=/one", rank_map=RankMap(8, 12, {"a": 4}))
    assert plain != decides("ranks_from=/one", "ranks_shuffle=all", rank_map=rank_map)
    shuffled = [
        decides("ranks_from=/one", "ranks_shuffle=all", f"ranks_shuffle_seed={s}", rank_map=rank_map) for s in (0, 1)
    ]
    assert shuffled[0] != shuffled[1]


def test_data_model_and_targets_enter_by_their_content():
    assert decides(task=replace(TASK, fingerprint="other")) != decides()
    assert decides(task=replace(TASK, options={"max_new_tokens": 8})) != decides()
    assert decides(task=replace(TASK, max_length=32)) != decides()
    assert decides(task=replace(TASK, metrics=("f1",))) != decides()
    assert decides(task=replace(TASK, task_type="generate")) != decides()
    assert decides()["model"] == "model"
    assert decides(targets="query|value") != decides()
    assert decides(targets=["query", "value"]) == decides(targets=["value", "query", "value"]) != decides()


DECIDING = {"train": {"lr": 0.001, "steps": 10}, "adapter": {"rank": 8}, "score": None}


def test_identity_follows_content_and_not_order():
    assert identity.digest(DECIDING) == identity.digest(dict(reversed(DECIDING.items())))
    changed = {**DECIDING, "train": {"lr": 0.002, "steps": 10}}
    assert identity.digest(DECIDING) != identity.digest(changed)


def test_the_recipe_is_part_of_the_identity(monkeypatch):
    before = identity.digest(DECIDING)
    monkeypatch.setattr(identity, "RECIPE", identity.RECIPE + 1)
    assert identity.digest(DECIDING) != before


def test_seeds_of_one_configuration_share_the_hash(tmp_path):
    names = {identity.run_folder(str(tmp_path), "lora", DECIDING, seed).name.rpartition("-s")[0] for seed in range(3)}
    assert names == {f"lora-{identity.digest(DECIDING)}"}


@pytest.mark.parametrize(
    ("words", "title"),
    [(["method=full"], "full-s0"), (["rank=4", "targets=qv", "seed=3"], "adalora-r4-qv-s3"),
     (["method=qlora"], "qlora-nf4-r8-all-s0")],
)  # fmt: skip
def test_a_run_s_title(words, title):
    assert identity.title(settled(*words)) == title


@pytest.mark.parametrize("cls", [Spec, TrainConfig])
def test_every_setting_has_a_sentence_and_an_identity_default(cls):
    for f in fields(cls):
        if f.metadata:
            assert f.metadata["help"].endswith("."), f.name
            assert identity_default(f) is NEVER or f.name in ("lr", "train") or identity_default(f) is not MISSING, (
                f.name
            )


def test_a_null_setting_that_the_run_supplies_enters_no_name():
    assert "seed" not in decides("score=random")["score"]
    assert decides("score=random", "score.seed=3")["score"]["seed"] == 3


def test_the_dtype_enters_unless_checkpoint_and_weights_are_both_in_fp32_or_fp64():
    half = replace(BASE, stored="bf16")
    assert decides(base=replace(BASE, dtype="fp32"), dtype="fp32") == decides()
    double = replace(BASE, stored="fp64")
    assert decides(base=double, dtype="fp64") == decides()
    assert decides(base=double, dtype="fp32") == {**decides(), "dtype": "fp32"}
    assert {**decides(), "dtype": "fp32"} == decides(base=half) == decides(base=replace(BASE, stored="fp16"))
    assert {**decides(), "dtype": "bf16"} == decides(base=half, dtype="bf16") == decides(dtype="bf16")


def test_an_attention_that_was_asked_for_enters():
    assert decides(base=replace(BASE, attention="eager")) == {**decides(), "attention": "eager"}


def test_skipped_evaluations_enter_and_a_share_that_skips_none_does_not():
    many = replace(TASK, dev=Split(["a"] * 20_000, None, np.zeros(20_000, np.int64)))
    assert decides()["train"] == decides("train.eval_share=null")["train"]
    skips, all_of_them = decides(task=many)["train"], decides("train.eval_share=null", task=many)["train"]
    assert {**all_of_them, "eval_share": 1.0} == skips


def test_several_passes_enter_and_auto_does_unless_rows_stay_together():
    assert decides("train.microbatches=auto")["train"] == {**decides()["train"], "microbatches": "auto"}
    assert decides("train.microbatches=2")["train"]["microbatches"] == 2
    for words, kind in ((["score=output"], "classify"), (["train.packing=true"], "generate"), ([], "extract")):
        auto, one = (
            decides(f"train.microbatches={passes}", *words, task=replace(TASK, task_type=kind))
            for passes in ("auto", 1)
        )
        assert auto == one
