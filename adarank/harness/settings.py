"""From a composed configuration to checked settings: tiny, wrong types, settings without effect, steps from fractions."""

import inspect
import math
import os
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, fields, make_dataclass
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adarank.errors import SettingError
from adarank.harness import distributed
from adarank.harness.complaints import near, sentence
from adarank.harness.schema import Settings

GROUPS = ("adapter", "init", "score", "allocator", "schedule", "penalty", "quantization", "task", "model", "tracker")
SUPPLIED = {  # what the harness adds to a group's own settings
    "adapter": {"model", "rank", "targets", "init", "batches", "train"},
    "score": {"seed"},
    "allocator": {"names", "limits"},
    "schedule": {"initial", "final", "total"},
    "quantization": {"model", "device", "precision"},
    "tracker": {"folder", "config", "name", "default_group"},
}


def conf_folder() -> Path:
    """Where the YAML files are: ADARANK_CONF, inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    named = os.environ.get("ADARANK_CONF")
    folders = [Path(named).absolute()] if named else [package / "conf", package.parent / "conf"]
    for folder in folders:
        if (folder / "config.yaml").is_file():
            return folder
    raise SettingError(f"ADARANK_CONF={named or ''}: no config.yaml in {' or '.join(map(str, folders))}")


def settle(config: DictConfig, overrides: Sequence[str], choices: Mapping[str, Any]) -> dict[str, Any]:
    """Plain, checked settings. overrides: as typed; choices: the option chosen of each group.

    Raises SettingError, naming the setting, for what is unknown, of the wrong type, without effect or out of range.
    """
    typed = typed_keys(overrides)
    if config.tiny:
        _make_tiny(config, typed)
    missing = sorted(str(key) for key in OmegaConf.missing_keys(config))
    if missing:
        raise SettingError(f"{missing[0]} is not set; valid: {missing[0]}=VALUE")
    known = {f.name for f in fields(Settings)}
    for key in map(str, config):
        if key not in known:
            raise SettingError(f"+{key}: there is no setting {key}; {near(str(key), known)}")
    settings: dict[str, Any] = _plain(OmegaConf.to_container(config, resolve=True, enum_to_str=True))
    label, chosen = settings["method"], choices.get("method")
    if label != chosen:
        raise SettingError(
            f"method: {label} is only a label on method={chosen}; in an experiment file write 'override /method: {label}'"
        )
    _check_recipe(choices.get("recipe"), choices.get("task"))
    for group in GROUPS:
        settings[group] = _check_group(group, settings[group])
    if fixes_ranks(settings):  # a method's own score and schedule go; those that were asked for are refused
        settings |= {group: None for group in ("score", "schedule") if group not in typed}
    _check_effects(settings, typed)
    _check_ranges(settings)
    return settings


def typed_keys(overrides: Sequence[str]) -> set[str]:
    """The settings that were typed: ["rank=4", "train.lr=1"] -> {"rank", "train.lr"}."""
    return {o.lstrip("+~").partition("=")[0] for o in overrides}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.value if isinstance(value, Enum) else value


def _make_tiny(config: DictConfig, typed: set[str]) -> None:
    """Apply conf/tiny.yaml to everything that was not typed; whole steps shrink with train.steps."""
    folder = conf_folder()
    tiny = OmegaConf.load(folder / "tiny.yaml")
    assert isinstance(tiny, DictConfig)
    if not any(key == "model" or key.startswith("model.") for key in typed):
        config.model = OmegaConf.load(folder / "model" / f"{tiny.model}.yaml")
    steps = config.train.steps
    for group in ("task", "train"):
        for key, value in tiny[group].items():
            if f"{group}.{key}" not in typed and key in config[group]:
                config[group][key] = value
    for group, names in (("train", ("warmup",)), ("schedule", ("t_i", "t_f", "t", "interval"))):
        for key in names:
            if f"{group}.{key}" not in typed and isinstance(value := (config[group] or {}).get(key), int) and value:
                config[group][key] = max(1, round(value * config.train.steps / steps))


def locate(target: str) -> Callable[..., Any]:
    """The function that a `_target_` names, with the module imported."""
    module, _, name = target.rpartition(".")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function


def accepts(node: Mapping[str, Any] | None, name: str) -> bool:
    """Whether the function that `node["_target_"]` names takes the argument `name`."""
    return node is not None and name in inspect.signature(locate(node["_target_"])).parameters


def is_low_rank(settings: Mapping[str, Any]) -> bool:
    """Whether the method's adapter is made of triplets: it takes an init for its factors."""
    return accepts(settings["adapter"], "init")


def fixes_ranks(settings: Mapping[str, Any]) -> bool:
    """Whether the allocator is a map: it takes the largest rank of every module and says every rank, once."""
    return accepts(settings["allocator"], "limits")


def adapts(settings: Mapping[str, Any]) -> bool:
    """Whether ranks change while training."""
    return settings["allocator"] is not None and not fixes_ranks(settings)


def _check_recipe(recipe: str | None, task: str | None) -> None:
    """Refuse a paper's recipe for a task that it does not have, whose settings would not be the paper's."""
    known = {path.stem for path in (conf_folder() / "recipe_by_task" / str(recipe)).glob("*.yaml")}
    if recipe is not None and task not in known:
        raise SettingError(f"recipe={recipe} has no settings for task={task}; {near(str(task), known)}")


def _check_group(group: str, node: Any) -> dict[str, Any] | None:
    """The node as {"_target_": …, settings…}, None where the option is none; types from the function's signature."""
    if node is None or node.get("_target_") is None:
        return None
    try:
        function = locate(node["_target_"])
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingError(
            f"{group}._target_={node['_target_']} is no function of this installation ({error})"
        ) from None
    given = {key: value for key, value in node.items() if key != "_target_"}
    supplied = SUPPLIED.get(group, set())
    hints = typing.get_type_hints(function)
    accepted = {
        name: p
        for name, p in inspect.signature(function).parameters.items()
        if name not in supplied and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    for key in given:
        if key not in accepted:
            raise SettingError(f"{group}.{key}={given[key]}: {group} has no setting {key}; {near(key, accepted)}")
    for name, parameter in accepted.items():
        if name not in given and parameter.default is parameter.empty:
            raise SettingError(f"{group}.{name} is not set; valid: {group}.{name}=VALUE")
    for key, value in given.items():
        options = _options(hints.get(key, Any))
        if options and value is not None and value not in options:
            raise SettingError(f"{group}.{key}={value} is not known; valid: {', '.join(map(str, options))}")
    types = {name: _hint(group, hints.get(name, Any)) for name in accepted}
    Schema = make_dataclass(group, [(name, types[name], field(default=None)) for name in given])
    try:
        OmegaConf.merge(OmegaConf.structured(Schema), given)
    except OmegaConfBaseException as error:
        key = str(error.full_key or "")
        raise SettingError(sentence(error).replace(key, f"{group}.{key}={given.get(key)}", 1)) from None
    return node


def _options(hint: Any) -> tuple[Any, ...]:
    """The values of a Literal, optional or not."""
    for part in (hint, *typing.get_args(hint)):
        if typing.get_origin(part) is typing.Literal:
            return typing.get_args(part)
    return ()


def _hint(group: str, hint: Any) -> Any:
    """The type as OmegaConf can check it. A schedule's steps may be given as fractions; containers in unions pass."""
    if group == "schedule" and hint is int:
        hint = int | float
    arguments = typing.get_args(hint)
    if len(arguments) > 1 and type(None) not in arguments and any(typing.get_origin(a) for a in arguments):
        return Any
    if typing.get_origin(hint) in (Callable, typing.Literal) or any(
        typing.get_origin(a) is not None for a in arguments
    ):
        return Any
    return hint | None if type(None) not in arguments and hint is not Any else hint


def _check_effects(settings: Mapping[str, Any], typed: set[str]) -> None:
    """Refuse what would be ignored. rank, targets and budget.unit are the terms of a comparison: always accepted."""
    method = settings["method"]

    def refuse(name: str, why: str) -> None:
        value = settings["train"].get(name.partition(".")[2]) if name.startswith("train.") else settings.get(name)
        raise SettingError(f"{name}={value} has no effect with method={method}: {why}; leave it out")

    if not is_low_rank(settings):
        why = "it has no adapter" if settings["adapter"] is None else "its adapter has no triplets"
        for group in ("init", "score", "allocator", "schedule", "penalty"):
            if settings[group] is not None:
                refuse_group(group, typed, method, why)
        if settings["quantization"] is not None:
            raise SettingError(
                f"quantization does not go with method={method}: 4-bit weights cannot train, and only low-rank "
                "adapters leave them as they are; valid: quantization=none, or a low-rank method"
            )
    if settings["train"]["optimizer"] != "adamw":
        for name, value in (("compaction", "off"), ("pruned", settings["pruned"].replace("frozen", "learning"))):
            if settings[name] != value:
                raise SettingError(
                    f"{name}={settings[name]} does not go with train.optimizer={settings['train']['optimizer']}, whose "
                    f"8-bit state can neither be gathered nor started anew; valid: {name}={value}, or train.optimizer=adamw"
                )
    if not adapts(settings):
        for group in ("score", "schedule"):
            if settings[group] is not None:
                refuse_group(group, typed, method, "it allocates no budget")
        for name, why in (
            ("init_rank", "its rank is fixed"),
            ("compaction", "it prunes nothing"),
            ("pruned", "it prunes nothing"),
            ("basis", "it allocates no budget"),
            ("capacity", "its rank is fixed"),
        ):
            if name in typed:
                refuse(name, why)
        if "mode" in typed and settings["penalty"] is None:
            refuse("mode", "it has no controller")
    else:
        for group in ("score", "schedule"):
            if settings[group] is None:
                raise SettingError(f"{group}=none does not go with method={method}, which allocates; choose a {group}")
        if "capacity" in typed and settings["pruned"] == "learning":
            refuse("capacity", "pruned=learning holds what it starts with")
    if settings["train"]["lr_ratio"] != 1.0 and not is_low_rank(settings):
        refuse("train.lr_ratio", "it has no B")
    if "patience" in typed and settings["compaction"] != "progressive":
        raise SettingError(
            f"patience={settings['patience']} has no effect with compaction={settings['compaction']}; leave it out"
        )
    if settings["target_modules"] is not None and settings["targets"] != "modules":
        raise SettingError(
            f"target_modules={settings['target_modules']} has no effect with targets={settings['targets']}; add targets=modules"
        )
    if settings["targets"] == "modules" and not settings["target_modules"]:
        raise SettingError(
            "targets=modules needs target_modules, the endings of module names: target_modules=[query,value]"
        )
    if settings["target_modules"] is not None and not accepts(settings["adapter"], "targets"):
        refuse("target_modules", "it has no adapter" if settings["adapter"] is None else "its adapter has no targets")


def refuse_group(group: str, typed: set[str], method: str, why: str) -> None:
    how = f"leave out {group}=" if group in typed else f"set {group}=none"
    raise SettingError(f"{group} has no effect with method={method}: {why}; {how}")


def _check_ranges(settings: Mapping[str, Any]) -> None:
    train = settings["train"]

    def least(name: str, value: float, minimum: float, above: bool = False) -> None:
        if not (math.isfinite(value) and (value > minimum if above else value >= minimum)):
            raise SettingError(f"{name}={value} is out of range; valid: {'above' if above else 'at least'} {minimum}")

    least("rank", settings["rank"], 1)
    if settings["init_rank"] is not None:
        least("init_rank", settings["init_rank"], 1)
        if settings["init_rank"] < settings["rank"] and settings["pruned"] == "learning":
            raise SettingError(
                f"init_rank={settings['init_rank']} lies below rank={settings['rank']}, the mean rank at the end; "
                f"valid: at least {settings['rank']}"
            )
    least("seed", settings["seed"], 0)
    least("capacity", settings["capacity"], 1)
    least("train.lr", train["lr"], 0, above=True)
    least("train.lr_ratio", train["lr_ratio"], 0, above=True)
    for name in ("steps", "batch_size", "accumulation", "log_every"):
        least(f"train.{name}", train[name], 1)
    for name in ("weight_decay", "clip"):
        least(f"train.{name}", train[name], 0)
    train_steps(settings)
    _check_processes(settings)


def _check_processes(settings: Mapping[str, Any]) -> None:
    """What does not go with this number of processes."""
    train = settings["train"]
    if train["batch_size"] % (world := distributed.world()):
        raise SettingError(
            f"train.batch_size={train['batch_size']} cannot be divided among {world} processes; valid: a multiple of {world}"
        )
    if train["shard"] == "fsdp2":
        _check_sharding(settings, world)


def _check_sharding(settings: Mapping[str, Any], world: int) -> None:
    def refuse(why: str) -> None:
        raise SettingError(f"train.shard=fsdp2 {why}; valid: train.shard=none")

    if world == 1:
        refuse("has no effect in a single process (start it with torchrun --nproc-per-node=N)")
    from adarank.harness.parallel import can_shard  # torch is not needed for other settings

    if not can_shard():
        refuse("needs torch 2.7 or later")
    if settings["quantization"] is not None:
        refuse("does not go with a 4-bit base, whose quantisation state FSDP2 drops")
    if settings["adapter"] is None and settings["train"]["optimizer"] != "adamw":
        refuse(f"does not go with train.optimizer={settings['train']['optimizer']}, which cannot train sharded weights")


def as_steps(name: str, value: float, total: int, minimum: int = 0) -> int:
    """Whole steps from steps (int) or from a fraction of `total` (a float from 0 up to 1), at least `minimum`."""
    if isinstance(value, bool) or not math.isfinite(value) or value < 0 or (isinstance(value, float) and value >= 1):
        raise SettingError(
            f"{name}={value} is no number of steps; valid: a whole number, or a fraction of train.steps from 0 up to 1"
        )
    steps = round(value * total) if isinstance(value, float) else value
    return max(steps, minimum) if isinstance(value, float) else steps


def train_steps(settings: Mapping[str, Any]) -> dict[str, int]:
    """train.warmup and train.eval_every in steps."""
    train = settings["train"]
    warmup = as_steps("train.warmup", train["warmup"], train["steps"])
    if warmup >= train["steps"]:
        raise SettingError(
            f"train.warmup={train['warmup']} leaves none of the {train['steps']} steps; valid: fewer than train.steps"
        )
    every = as_steps("train.eval_every", train["eval_every"], train["steps"], minimum=1)
    if every < 1:
        raise SettingError(f"train.eval_every={train['eval_every']} never evaluates; valid: at least 1 step")
    return {"warmup": warmup, "eval_every": every}


def schedule_steps(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The schedule's settings, every number of steps whole: t_i, t_f, t and interval may be fractions of train.steps."""
    total = settings["train"]["steps"]
    least = {"t_i": 0, "t_f": 0, "t": 1, "interval": 1}  # of a fraction
    return {
        key: as_steps(f"schedule.{key}", value, total, minimum=least[key]) if key in least else value
        for key, value in settings["schedule"].items()
        if key != "_target_"
    }
