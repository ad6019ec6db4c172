"""Composed configurations through `settle`: what is refused, and in which words."""

from copy import deepcopy
from functools import cache

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adarank.errors import SettingError
from adarank.harness.config.compose import compose, spec_from
from adarank.harness.config.messages import RENAMED, sentence
from adarank.harness.config.spec import as_steps, spec_of
from adarank.harness.config.validate import conf_folder, settle
from tests.representatives import representatives

PARSER = OverridesParser.create()
composed = cache(compose)  # of choices alone: composing is most of a case's time


def settled(*overrides):
    """What `spec_from` gives, for values that the composed configuration can hold."""
    words = {word: PARSER.parse_override(word) for word in overrides}
    values = {word: value for word, value in words.items() if not (conf_folder() / value.key_or_group).is_dir()}
    config, hydra = deepcopy(composed(tuple(word for word in overrides if word not in values)))
    OmegaConf.set_struct(config, True)
    try:
        for value in values.values():
            OmegaConf.update(config, value.key_or_group, value.value())
    except OmegaConfBaseException:
        return spec_from(overrides)
    OmegaConf.set_struct(config, False)
    return settle(config, overrides, dict(hydra.runtime.choices))


def test_adalora_s_defaults():
    spec = settled("rank=8")
    assert (spec.score.target, spec.score.settings) == ("adarank.scores.adalora", {"beta1": 0.85, "beta2": 0.85})
    assert spec.train.lr == 1e-2
    assert spec.schedule.settings == {"t_i": 100, "t_f": 300, "interval": 10}
    assert (spec.train.warmup_steps, spec.train.eval_steps) == (60, 250)
    assert (spec.init_rank, spec.initial_rank, spec.held_rank) == (12, 12, 12)


@pytest.mark.parametrize(("t", "steps"), [("0.25", 250), ("250", 250), ("0.0", 1)])
def test_one_shot_s_step_may_be_a_fraction(t, steps):
    assert settled("schedule=one_shot", f"schedule.t={t}").schedule.settings == {"t": steps}


def test_methods_without_a_group_have_none():
    lora, full = settled("method=lora"), settled("method=full", "rank=4", "targets=qv")
    assert [lora.score, lora.allocator, lora.schedule, lora.penalty] == [None] * 4
    assert [full.adapter, full.init] == [None] * 2
    assert (lora.init_rank, lora.initial_rank, lora.low_rank, full.low_rank) == (None, 8, True, False)


@pytest.mark.parametrize("method", ["adalora", "full", "houlsby", "increlora", "qlora"])
def test_a_record_gives_the_spec_again(method):
    spec = settled(f"method={method}")
    assert spec_of(spec.record()) == spec
    with pytest.raises(SettingError, match=r"contains train\.clip, which this version of adarank does not know"):
        spec_of({**spec.record(), "train": {**spec.record()["train"], "clip": 1.0}})


@pytest.mark.parametrize("name", representatives(RENAMED, 5))
def test_a_setting_that_was_renamed_answers_with_its_new_name(name):
    owner = {"penalty": ["method=sora"], "allocator": ["method=elalora"]}.get(name.partition(".")[0], [])
    with pytest.raises((SettingError, HydraException)) as error:
        settled(*owner, name if "=" in name else f"{name}=1")
    assert sentence(error.value) == f"{name} is now {RENAMED[name]}"


def test_the_original_variant_prunes_by_its_own_threshold_unless_an_allocator_is_named():
    assert settled("variant=original").allocator.target == "adarank.allocators.threshold"
    assert settled("variant=original", "allocator=global_top").allocator.target == "adarank.allocators.global_top"
    assert settled("variant=original", "allocator=uniform").allocator.target == "adarank.allocators.uniform"
    assert settled("recipe=adalora", "task=rte").allocator.target == "adarank.allocators.threshold"
    assert settled("variant=paper").allocator.target == "adarank.allocators.global_top"
    with pytest.raises(SettingError, match=r"budget\.unit=parameters cannot be combined with variant=original"):
        settled("variant=original", "budget.unit=parameters")


def test_what_a_method_sets_of_its_option_goes_with_it():
    grown = settled("method=flexlora", "allocator=grow", "schedule=growing", "init_rank=1")
    assert grown.allocator.settings == {"top_h": 4, "max_rank": None}
    assert grown.schedule.settings == {"t_i": 100, "t_f": 300, "interval": 10, "curve": "linear"}
    with pytest.raises(SettingError, match=r"allocator has no setting importance_of"):
        settled("method=flexlora", "allocator=grow", "+allocator.importance_of=module")


def test_tiny_makes_small_what_is_not_given():
    spec = settled("tiny=true", "train.steps=5", "task.limit=9")
    assert spec.model.name == "tiny"
    assert (spec.train.steps, spec.train.batch_size, spec.task.settings["limit"]) == (5, 8, 9)
    assert settled("tiny=true", "model=hub", "model.name=x").model.settings["name"] == "x"
    assert settled("tiny=true", "model=tiny_llama").model.settings["arch"] == "llama"


def test_tiny_shrinks_whole_steps_with_the_run():
    given = ["experiment=paper/adalora_table1", "task=rte"]  # t_i 600, t_f 1800, ΔT 1, warm-up 200 of 3,900 steps
    spec = settled("tiny=true", *given)
    assert spec.train.steps == 12
    assert [spec.schedule.settings[key] for key in ("t_i", "t_f", "interval")] == [2, 6, 1]
    assert spec.train.warmup == 1
    assert settled("tiny=true", "schedule.t_i=4", *given).schedule.settings["t_i"] == 4
    assert settled("tiny=true", "method=dylora").schedule.settings["t_f"] == 1
    assert settled("tiny=true", "method=sora").schedule.settings["t_i"] == 0


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["method=lora", "score=adalora"],
            "score has no effect with method=lora: it allocates no budget; remove score=",
        ),
        (["method=full", "penalty=orthogonality"], "penalty has no effect with method=full: it has no adapter"),
        (["method=lora", "max_rank_factor=2"], "max_rank_factor=2.0 has no effect with method=lora: its rank is fixed"),
        (
            ["max_rank_factor=2"],
            "max_rank_factor=2.0 has no effect with method=adalora: with pruned_triplets=trainable the number of "
            "triplets held never grows",
        ),
        (
            ["method=full", "train.loraplus_lr_ratio=4"],
            "train.loraplus_lr_ratio=4.0 has no effect with method=full: it has no B",
        ),
        (
            ["method=houlsby", "train.loraplus_lr_ratio=4"],
            "train.loraplus_lr_ratio=4.0 has no effect with method=houlsby: it has no B",
        ),
        (
            ["method=bitfit", "train.loraplus_lr_ratio=4"],
            "train.loraplus_lr_ratio=4.0 has no effect with method=bitfit: it has no B",
        ),
        (["method=lora", "train.loraplus_lr_ratio=0"], "train.loraplus_lr_ratio must be a number above 0 (got 0.0)"),
        (["method=pfeiffer", "init=default"], "init has no effect with method=pfeiffer: its adapter has no triplets"),
        (["method=bitfit", "penalty=orthogonality"], "penalty has no effect with method=bitfit"),
        (["method=head", "allocator=global_top"], "allocator has no effect with method=head"),
        (["method=houlsby", "init_rank=12"], "init_rank=12 has no effect with method=houlsby: its rank is fixed"),
        (["method=houlsby", "adapter.activation=sin"], "adapter.activation must be one of gelu, relu, silu (got sin)"),
        (["method=houlsby", "+adapter.alpha=1"], "adapter.alpha=1: adapter has no setting alpha"),
        (["method=bitfit", "target_modules=[query]"], "its adapter has no targets"),
        (["method=full", "init=default"], "init has no effect with method=full: it has no adapter"),
        (["method=full", "allocator=global_top"], "allocator has no effect with method=full"),
        (["method=lora", "init_rank=12"], "init_rank=12 has no effect with method=lora: its rank is fixed"),
        (["method=lora", "compaction=off"], "compaction=off has no effect with method=lora"),
        (["method=full", "variant=paper"], "variant=paper has no effect with method=full"),
        (["method=adalora", "score=none"], "score=none cannot be combined with method=adalora, which allocates"),
        (
            ["compact_after=3"],
            "compact_after=3 has no effect with method=adalora: compaction=off does not count allocations",
        ),
        (["targets=qv", "target_modules=[query]"], "targets=qv has no effect with target_modules=['query']"),
        (["target_modules=[]"], "target_modules must hold at least one module-name ending"),
        (
            ["init_rank=4"],
            "init_rank must be at least rank=8, the mean final rank, with pruned_triplets=trainable (got 4)",
        ),
        (["rank=0"], "rank must be a whole number of at least 1 (got 0)"),
        (["seed=-1"], "seed must be a whole number of at least 0 (got -1)"),
        (["train.lr=0"], "train.lr must be a number above 0 (got 0.0)"),
        (["train.lr=nan"], "train.lr must be a number above 0 (got nan)"),
        (["train.steps=0"], "train.steps must be a whole number of at least 1 (got 0)"),
        (["train.max_grad_norm=-1"], "train.max_grad_norm must be a number of at least 0 (got -1.0)"),
        (["train.warmup=1.5"], "train.warmup must be a whole number of steps or a fraction"),
        (["train.warmup=1000"], "train.warmup must be less than train.steps=1000 (got 1000)"),
        (["train.eval_every=0"], "train.eval_every must be at least 1 step (got 0)"),
        (
            ["train.observe_scores=1001"],
            "train.observe_scores must be a step from 1 to 1000, or a fraction of train.steps (got 1001)",
        ),
        (
            ["method=lora", "train.observe_scores=0.05"],
            "train.observe_scores=0.05 has no effect with method=lora: it has no",
        ),
        (["train.microbatches=0"], "train.microbatches must be auto or a whole number of at least 1 (got 0)"),
        (["train.microbatches=many"], "train.microbatches must be auto or a whole number of at least 1 (got many)"),
        (["train.eval_share=0"], "train.eval_share must be a number above 0 (got 0.0)"),
        (
            ["train.eval_every=10", "train.eval_share=2"],
            "train.eval_share=2.0 has no effect with method=adalora: train.eval_every is a number of steps, none of "
            "which is skipped; remove it",
        ),
        (["checkpoint_seconds=-1"], "checkpoint_seconds must be a number of at least 0, null or auto (got -1)"),
        (["checkpoint_seconds=often"], "checkpoint_seconds must be a number of at least 0, null or auto (got often)"),
        (["score.beta1=high"], "score.beta1 must be a number (got high)"),
        (["task.limit=few"], "task.limit must be a whole number (got few)"),
        (["tracker=wandb", "tracker.mode=onlin"], "tracker.mode must be one of online, offline, disabled (got onlin)"),
        (["+rnak=8"], "+rnak: there is no setting rnak; similar names: rank"),
        (["schedule=growing", "schedule.curve=odd"], "schedule.curve must be one of linear, cubic (got odd)"),
        (["+score.beta3=1"], "score.beta3=1: score has no setting beta3; similar names: beta2, beta1"),
        (["model=local"], "model.path is not set; set model.path=VALUE"),
        (["recipe=adalora", "task=wnli"], "recipe=adalora has no settings for task=wnli; similar names: qnli, mnli"),
        (
            ["recipe=adalora"],
            "recipe=adalora has no settings for task=rotten_tomatoes; choose from cnn_dailymail, cola, mnli",
        ),
        (
            ["method=increlora", "init_rank=null"],
            "the initial budget must be at most the final one of 8 with schedule=growing (got 12)",
        ),
        (
            ["method=increlora", "max_rank_factor=1", "init_rank=8"],
            "max_rank_factor must be above 1 with allocator=grow",
        ),
        (
            ["method=increlora", "compaction=progressive"],
            "compaction must be off or final with a schedule or an allocator that activates further triplets",
        ),
        (["train.batch_size=8", "train.optimizer=sgd"], "train.optimizer must be one of adamw, adamw_8bit"),
        (["train.chunked_loss=maybe"], "train.chunked_loss must be one of auto, true, false (got maybe)"),
        (["score.beta1=2"], "score.beta1"),
        (
            ["score._target_=adarank.scores.adalra"],
            "score._target_ must name a function that can be imported (got adarank.scores.adalra",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(overrides, says):
    with pytest.raises(SettingError) as error:
        settled(*overrides)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_method_s_label_must_be_the_method_composed():
    config, hydra = compose(["method=lora"])
    with pytest.raises(SettingError, match="method: lora only relabels method=adalora"):
        settle(config, ["method=lora"], {**hydra.runtime.choices, "method": "adalora"})


@pytest.mark.parametrize(("value", "steps"), [(5, 5), (0, 0), (0.25, 25), (0.0, 0), (0.001, 1)])
def test_steps_or_a_fraction_of_them(value, steps):
    assert as_steps("x", value, 100, minimum=1 if value == 0.001 else 0) == steps


@pytest.mark.parametrize("value", [1.0, 2.5, -1, -0.1, float("nan"), True])
def test_what_is_no_number_of_steps(value):
    with pytest.raises(SettingError, match=r"^x must be a whole number of steps"):
        as_steps("x", value, 100)


@pytest.mark.parametrize(
    ("settings", "dev", "steps"),
    [
        ([], 100, [25, 50, 75, 100]),
        ([], 1000, [50, 75, 100]),  # after 25 steps 800 rows had been trained
        ([], 5000, [100]),
        (["train.eval_share=null"], 5000, [25, 50, 75, 100]),
        (["train.eval_share=2"], 1000, [25, 50, 75, 100]),
        (["train.gradient_accumulation_steps=2"], 1000, [25, 50, 75, 100]),
        (["train.eval_every=30"], 5000, [30, 60, 90, 100]),
        (["train.eval_every=0.5"], 10, [50, 100]),
    ],
)
def test_when_dev_is_evaluated(settings, dev, steps):
    train = settled("train.steps=100", "train.batch_size=32", *settings).train
    assert train.evaluation_steps(dev) == steps
