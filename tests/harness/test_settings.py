"""Composed configurations through `settle`: what is refused, and in which words."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from adarank.errors import SettingError
from adarank.harness import schema
from adarank.harness.settings import as_steps, conf_folder, schedule_steps, settle, train_steps


def settled(*overrides, choice=None):
    schema.register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = compose("config", list(overrides), return_hydra_config=True)
    choices = dict(config.hydra.runtime.choices)
    OmegaConf.set_struct(config, False)
    config.pop("hydra")
    if choice:
        choices["method"] = choice
    return settle(config, overrides, choices)


def test_adalora_s_defaults():
    settings = settled("rank=8")
    assert settings["score"] == {"_target_": "adarank.scores.adalora", "beta1": 0.85, "beta2": 0.85}
    assert settings["train"]["lr"] == 1e-2
    assert schedule_steps(settings) == {"t_i": 100, "t_f": 300, "interval": 10}
    assert train_steps(settings) == {"warmup": 60, "eval_every": 100}


@pytest.mark.parametrize(("t", "steps"), [("0.25", 250), ("250", 250), ("0.0", 1)])
def test_one_shot_s_step_may_be_a_fraction(t, steps):
    assert schedule_steps(settled("schedule=one_shot", f"schedule.t={t}")) == {"t": steps}


def test_methods_without_a_group_have_none():
    lora, full = settled("method=lora"), settled("method=full", "rank=4", "targets=qv")
    assert [lora[g] for g in ("score", "allocator", "schedule", "penalty")] == [None] * 4
    assert [full[g] for g in ("adapter", "init")] == [None] * 2


def test_tiny_makes_small_what_is_not_given():
    settings = settled("tiny=true", "train.steps=5", "task.limit=9")
    assert settings["model"]["_target_"].endswith("tiny")
    assert (settings["train"]["steps"], settings["train"]["batch_size"], settings["task"]["limit"]) == (5, 8, 9)
    assert settled("tiny=true", "model=hub", "model.name=x")["model"]["name"] == "x"
    assert settled("tiny=true", "model=tiny_llama")["model"]["arch"] == "llama"


def test_tiny_shrinks_whole_steps_with_the_run():
    given = ["experiment=paper/adalora_table1", "task=rte"]  # t_i 600, t_f 1800, ΔT 1, warm-up 200 of 3,900 steps
    settings = settled("tiny=true", *given)
    assert settings["train"]["steps"] == 12
    assert [settings["schedule"][key] for key in ("t_i", "t_f", "interval")] == [2, 6, 1]
    assert settings["train"]["warmup"] == 1
    assert settled("tiny=true", "schedule.t_i=4", *given)["schedule"]["t_i"] == 4
    assert settled("tiny=true", "method=dylora")["schedule"]["t_f"] == 1
    assert settled("tiny=true", "method=sora")["schedule"]["t_i"] == 0


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["method=lora", "score=adalora"],
            "score has no effect with method=lora: it allocates no budget; leave out score=",
        ),
        (["method=full", "penalty=orthogonality"], "penalty has no effect with method=full: it has no adapter"),
        (["method=lora", "capacity=2"], "capacity=2.0 has no effect with method=lora: its rank is fixed"),
        (["capacity=2"], "capacity=2.0 has no effect with method=adalora: pruned=learning holds what it starts with"),
        (["method=full", "train.lr_ratio=4"], "train.lr_ratio=4.0 has no effect with method=full: it has no B"),
        (["method=houlsby", "train.lr_ratio=4"], "train.lr_ratio=4.0 has no effect with method=houlsby: it has no B"),
        (["method=bitfit", "train.lr_ratio=4"], "train.lr_ratio=4.0 has no effect with method=bitfit: it has no B"),
        (["method=lora", "train.lr_ratio=0"], "train.lr_ratio=0.0 is out of range; valid: above 0"),
        (["method=pfeiffer", "init=default"], "init has no effect with method=pfeiffer: its adapter has no triplets"),
        (["method=bitfit", "penalty=orthogonality"], "penalty has no effect with method=bitfit"),
        (["method=head", "allocator=global_top"], "allocator has no effect with method=head"),
        (["method=houlsby", "init_rank=12"], "init_rank=12 has no effect with method=houlsby: its rank is fixed"),
        (["method=houlsby", "adapter.activation=sin"], "adapter.activation=sin is not known; valid: gelu, relu, silu"),
        (["method=houlsby", "+adapter.alpha=1"], "adapter.alpha=1: adapter has no setting alpha"),
        (["method=bitfit", "targets=modules", "target_modules=[query]"], "its adapter has no targets"),
        (["method=full", "init=default"], "init has no effect with method=full: it has no adapter"),
        (["method=full", "allocator=global_top"], "allocator has no effect with method=full"),
        (["method=lora", "init_rank=12"], "init_rank=12 has no effect with method=lora: its rank is fixed"),
        (["method=lora", "compaction=off"], "compaction=off has no effect with method=lora"),
        (["method=full", "mode=paper"], "mode=paper has no effect with method=full"),
        (["method=adalora", "score=none"], "score=none does not go with method=adalora, which allocates"),
        (["patience=3"], "patience=3 has no effect with compaction=off; leave it out"),
        (["target_modules=[query]"], "has no effect with targets=all; add targets=modules"),
        (["targets=modules"], "targets=modules needs target_modules"),
        (["init_rank=4"], "init_rank=4 lies below rank=8, the mean rank at the end; valid: at least 8"),
        (["rank=0"], "rank=0 is out of range; valid: at least 1"),
        (["seed=-1"], "seed=-1 is out of range; valid: at least 0"),
        (["train.lr=0"], "train.lr=0.0 is out of range; valid: above 0"),
        (["train.lr=nan"], "train.lr=nan is out of range"),
        (["train.steps=0"], "train.steps=0 is out of range; valid: at least 1"),
        (["train.clip=-1"], "train.clip=-1.0 is out of range; valid: at least 0"),
        (["train.warmup=1.5"], "train.warmup=1.5 is no number of steps"),
        (["train.warmup=1000"], "train.warmup=1000 leaves none of the 1000 steps"),
        (["train.eval_every=0"], "train.eval_every=0 never evaluates"),
        (["score.beta1=high"], "score.beta1=high is not of the right type; valid: a number"),
        (["task.limit=few"], "task.limit=few is not of the right type; valid: a whole number"),
        (["tracker=wandb", "tracker.mode=onlin"], "tracker.mode=onlin is not known; valid: online, offline, disabled"),
        (["+rnak=8"], "+rnak: there is no setting rnak; near names: rank"),
        (["score=random", "+score.seed=1"], "score.seed=1: score has no setting seed"),
        (["schedule=growing", "schedule.curve=odd"], "schedule.curve=odd is not known; valid: linear, cubic"),
        (["+score.beta3=1"], "score.beta3=1: score has no setting beta3; near names: beta2, beta1"),
        (["model=local"], "model.path is not set; valid: model.path=VALUE"),
        (["recipe=adalora", "task=wnli"], "recipe=adalora has no settings for task=wnli; near names: qnli, mnli"),
        (
            ["recipe=adalora"],
            "recipe=adalora has no settings for task=rotten_tomatoes; valid: cnn_dailymail, cola, mnli",
        ),
        (["score._target_=adarank.scores.adalra"], "score._target_=adarank.scores.adalra is no function"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(overrides, says):
    with pytest.raises(SettingError) as error:
        settled(*overrides)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_method_s_label_must_be_the_method_composed():
    with pytest.raises(SettingError, match="method: lora is only a label on method=adalora"):
        settled("method=lora", choice="adalora")


@pytest.mark.parametrize(("value", "steps"), [(5, 5), (0, 0), (0.25, 25), (0.0, 0), (0.001, 1)])
def test_steps_or_a_fraction_of_them(value, steps):
    assert as_steps("x", value, 100, minimum=1 if value == 0.001 else 0) == steps


@pytest.mark.parametrize("value", [1.0, 2.5, -1, -0.1, float("nan"), True])
def test_what_is_no_number_of_steps(value):
    with pytest.raises(SettingError, match="x="):
        as_steps("x", value, 100)
