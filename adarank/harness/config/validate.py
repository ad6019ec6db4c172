"""Turns a composed configuration into a checked `Spec`: applies tiny, converts fractions to steps, and refuses settings
of the wrong type, out of range or without effect."""

import inspect
import math
import os
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import field, fields, make_dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adarank.errors import SettingError
from adarank.harness.config.messages import listed, near, renamed, sentence
from adarank.harness.config.spec import GROUPS, PASSED, BudgetConfig, Piece, Spec, TrainConfig, as_steps, locate
from adarank.harness.run import distributed

SCHEDULE_STEPS = {
    "t_i": 0,
    "t_f": 0,
    "t": 1,
    "interval": 1,
    "last_interval": 1,
}  # settings that may be fractions, and the minimum number of steps that a fraction gives


def conf_folder() -> Path:
    """The folder of the YAML files: ADARANK_CONF if it is set, else conf inside the installed package or next to it in
    a checkout."""
    package = Path(__file__).resolve().parents[2]
    named = os.environ.get("ADARANK_CONF")
    folders = [Path(named).absolute()] if named else [package / "conf", package.parent / "conf"]
    for folder in folders:
        if (folder / "config.yaml").is_file():
            return folder
    raise SettingError(
        f"ADARANK_CONF must name a folder that holds config.yaml (got {named or 'nothing'}; looked in "
        f"{' and '.join(map(str, folders))})"
    )


def settle(config: DictConfig, overrides: Sequence[str], choices: Mapping[str, Any]) -> Spec:
    """The checked settings of one run. overrides: as typed; choices: the option chosen for each group.

    Settings that depend on the device, the model or another run (train.precision, targets, ranks_from) are settled
    later by `adarank.harness.run.resolve`. Raises SettingError, naming the setting, if one is unknown, of the wrong
    type, out of range or without effect.
    """
    typed = typed_keys(overrides)
    if config.tiny:
        _make_tiny(config, typed, choices)
    missing = sorted(str(key) for key in OmegaConf.missing_keys(config))
    if missing:
        raise SettingError(f"{missing[0]} is not set; set {missing[0]}=VALUE")
    known = {f.name for f in fields(Spec)}
    for key in map(str, config):
        if key not in known:
            raise SettingError(renamed(key) or f"+{key}: there is no setting {key}; {near(key, known)}")
    settings: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    _check_label(settings["method"], choices)
    _check_recipe(choices.get("recipe"), choices.get("task"))
    parts = {"train": TrainConfig(**settings["train"]), "budget": BudgetConfig(**settings["budget"])}
    left_over = _left_over(choices) - typed
    spec = Spec(**{**settings, **parts, **{group: _piece(group, settings[group], left_over) for group in GROUPS}})
    spec = _with_original_rule(spec, typed)
    if spec.ranks_from is not None and spec.low_rank:  # drop the method's own allocation, but refuse what was typed
        idle = {group: None for group in ("score", "allocator", "schedule") if group not in typed}
        spec = replace(spec, **idle)  # type: ignore[arg-type]
    _check_ranges(spec)
    _check_effects(spec, typed)
    spec = _resolved(spec)
    _check_pieces(spec)
    return spec


def typed_keys(overrides: Sequence[str]) -> set[str]:
    """The names of the settings that the user typed: ["rank=4", "train.lr=1"] -> {"rank", "train.lr"}."""
    return {o.lstrip("+~").partition("=")[0] for o in overrides}


def _resolved(spec: Spec) -> Spec:
    """Resolve init_rank and the schedule's steps to numbers if ranks adapt."""
    if not spec.adaptive or spec.schedule is None:
        return spec
    steps = {
        key: as_steps(f"schedule.{key}", value, spec.train.steps, minimum=SCHEDULE_STEPS[key])
        if key in SCHEDULE_STEPS
        else value
        for key, value in spec.schedule.settings.items()
    }
    init_rank = math.ceil(1.5 * spec.rank) if spec.init_rank is None else spec.init_rank
    return replace(spec, init_rank=init_rank, schedule=replace(spec.schedule, settings=steps))


def _with_original_rule(spec: Spec, typed: set[str]) -> Spec:
    """Let variant=original prune by the original code's threshold, unless the user chose an allocator by name."""
    pruned_by_rank = spec.allocator is not None and spec.allocator.target == "adarank.allocators.global_top"
    if spec.variant != "original" or not pruned_by_rank or any(k.partition(".")[0] == "allocator" for k in typed):
        return spec
    if spec.budget.unit == "parameters":
        raise SettingError(
            "budget.unit=parameters cannot be combined with variant=original, whose threshold counts triplets; choose "
            "budget.unit=triplets or an allocator by name (allocator=global_top)"
        )
    return replace(spec, allocator=Piece("allocator", "adarank.allocators.threshold", {}))


def _make_tiny(config: DictConfig, typed: set[str], choices: Mapping[str, Any]) -> None:
    """Apply conf/tiny.yaml to every setting that was not typed; numbers of steps shrink with train.steps."""
    folder = conf_folder()
    tiny = OmegaConf.load(folder / "tiny.yaml")
    assert isinstance(tiny, DictConfig)
    if not any(key == "model" or key.startswith("model.") for key in typed):
        model = tiny.model_of_task.get(choices.get("task"), tiny.model)
        config.model = OmegaConf.load(folder / "model" / f"{model}.yaml")
    steps = config.train.steps
    for group in ("task", "train"):
        for key, value in tiny[group].items():
            if f"{group}.{key}" not in typed and key in config[group]:
                config[group][key] = value
    for group, names in (("train", ("warmup",)), ("schedule", tuple(SCHEDULE_STEPS))):
        for key in names:
            if f"{group}.{key}" not in typed and isinstance(value := (config[group] or {}).get(key), int) and value:
                config[group][key] = max(1, round(value * config.train.steps / steps))


def _check_label(label: str, choices: Mapping[str, Any]) -> None:
    chosen = choices.get("method")
    if label != chosen:
        raise SettingError(
            f"method: {label} only relabels method={chosen}; in an experiment file write 'override /method: {label}'"
        )


def _check_recipe(recipe: str | None, task: str | None) -> None:
    """Refuse a paper's recipe for a task that it does not cover, whose settings would not be the paper's."""
    known = {path.stem for path in (conf_folder() / "recipe_by_task" / str(recipe)).glob("*.yaml")}
    if recipe is not None and task not in known:
        raise SettingError(f"recipe={recipe} has no settings for task={task}; {near(str(task), known)}")


def _left_over(choices: Mapping[str, Any]) -> set[str]:
    """The settings that the method's YAML gives to its own option of a group although another option was chosen:
    {"allocator.importance_of"} with method=flexlora allocator=grow. An option that does not have them ignores them."""
    file = conf_folder() / "method" / f"{choices.get('method')}.yaml"
    method: Any = OmegaConf.load(file) if file.is_file() else {}
    own = {k.lstrip("/"): v for line in method.get("defaults", []) if line != "_self_" for k, v in line.items()}
    replaced = [group for group in GROUPS if group in own and choices.get(group) != own[group]]
    return {f"{group}.{key}" for group in replaced for key in method.get(group, {})}


def _piece(group: str, node: Any, left_over: Collection[str] = ()) -> Piece | None:
    """The option of a group, or None for none. Its settings' names and types are checked against the function's
    signature, which may lack those in `left_over`."""
    if node is None or node.get("_target_") is None:
        return None
    target, given = node["_target_"], {key: value for key, value in node.items() if key != "_target_"}
    try:
        function = locate(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingError(
            f"{group}._target_ must name a function that can be imported (got {target}: {error})"
        ) from None
    hints = typing.get_type_hints(function)
    accepted = {
        name: p
        for name, p in inspect.signature(function).parameters.items()
        if name not in PASSED.get(group, ()) and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    given = {key: value for key, value in given.items() if key in accepted or f"{group}.{key}" not in left_over}
    for key in given:
        if key not in accepted:
            told = renamed(f"{group}.{key}")
            raise SettingError(
                told or f"{group}.{key}={given[key]}: {group} has no setting {key}; {near(key, accepted)}"
            )
    piece = Piece(group, target, given)
    for name, parameter in accepted.items():
        if name not in given and parameter.default is parameter.empty and name not in piece.needs:
            raise SettingError(f"{group}.{name} is not set; set {group}.{name}=VALUE")
    for key, value in given.items():
        _check_choice(f"{group}.{key}", value, _literals(hints.get(key, Any)))
    types = {name: _hint(group, hints.get(name, Any)) for name in accepted}
    Schema = make_dataclass(group, [(name, types[name], field(default=None)) for name in given])
    try:
        OmegaConf.merge(OmegaConf.structured(Schema), given)
    except OmegaConfBaseException as error:
        key = str(error.full_key or "")
        raise SettingError(f"{group}.{sentence(error)} (got {given.get(key)})") from None
    return piece


def _check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    if choices and value is not None and value not in choices:
        raise SettingError(f"{name} must be one of {listed(choices)} (got {value})")


def _literals(hint: Any) -> tuple[Any, ...]:
    """The values of a Literal, optional or not."""
    for part in (hint, *typing.get_args(hint)):
        if typing.get_origin(part) is typing.Literal:
            return typing.get_args(part)
    return ()


def _hint(group: str, hint: Any) -> Any:
    """The type in a form that OmegaConf can check. A schedule's steps may be fractions; unions with containers become
    Any."""
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


def _value(spec: Spec, name: str) -> Any:
    """The value of the setting with this dotted name."""
    part, _, key = name.rpartition(".")
    return getattr(getattr(spec, part) if part else spec, key)


def _check_effects(spec: Spec, typed: set[str]) -> None:
    """Refuse settings that would be ignored. rank, targets and budget.unit, which a comparison gives to all its
    methods, are always accepted."""
    groups = {group: getattr(spec, group) for group in GROUPS}

    def refuse(name: str, why: str) -> None:
        raise SettingError(f"{name}={_value(spec, name)} has no effect with method={spec.method}: {why}; remove it")

    def refuse_group(group: str, why: str) -> None:
        how = f"remove {group}=" if group in typed else f"set {group}=none"
        raise SettingError(f"{group} has no effect with method={spec.method}: {why}; {how}")

    if not spec.low_rank:
        why = "it has no adapter" if spec.adapter is None else "its adapter has no triplets"
        for group in ("init", "score", "allocator", "schedule", "penalty"):
            if groups[group] is not None:
                refuse_group(group, why)
        if spec.quantization is not None:
            raise SettingError(
                f"quantization cannot be combined with method={spec.method}: 4-bit weights cannot train, and only "
                "low-rank adapters leave them unchanged; choose quantization=none or a low-rank method"
            )
    if spec.ranks_from is not None and spec.low_rank:
        for group in ("score", "allocator", "schedule"):
            if groups[group] is not None:
                raise SettingError(f"{group} has no effect with ranks_from, which fixes every rank; remove {group}=")
    if not spec.adaptive:
        for group in ("score", "schedule"):
            if groups[group] is not None:
                refuse_group(group, "it allocates no budget")
    else:
        for group in ("score", "schedule"):
            if groups[group] is None:
                raise SettingError(
                    f"{group}=none cannot be combined with method={spec.method}, which allocates; choose a {group}"
                )
    if spec.train.optimizer != "adamw":
        trainable = spec.pruned_triplets.replace("frozen", "trainable")
        for name, value in (("compaction", "off"), ("pruned_triplets", trainable)):
            if getattr(spec, name) != value:
                raise SettingError(
                    f"{name}={getattr(spec, name)} cannot be combined with train.optimizer={spec.train.optimizer}, "
                    f"whose 8-bit state can be neither gathered nor reset; choose {name}={value} or "
                    "train.optimizer=adamw"
                )
    idle = spec.without_effect()
    for name in typed & idle.keys() - {"budget.unit"}:
        refuse(name, idle[name])
    # Settings from a method's YAML count, too, if ignoring them would train something other than the user asked for.
    if spec.train.loraplus_lr_ratio != 1.0 and not spec.low_rank:
        refuse("train.loraplus_lr_ratio", idle["train.loraplus_lr_ratio"])
    if spec.target_modules is not None and not spec.takes("targets"):
        refuse("target_modules", idle["target_modules"])
    if spec.ranks_from is not None and not spec.low_rank:
        refuse("ranks_from", idle["ranks_from"])
    if spec.target_modules is not None and "targets" in typed:
        raise SettingError(
            f"targets={spec.targets} has no effect with target_modules={spec.target_modules}; remove one of them"
        )


def _check_ranges(spec: Spec) -> None:
    """Check every setting's choices and range, then the conditions that involve several settings."""
    for prefix, part in (("", spec), ("train.", spec.train), ("budget.", spec.budget)):
        for f in fields(part):
            value = getattr(part, f.name)
            _check_choice(prefix + f.name, value, f.metadata.get("choices", ()))
            _check_number(
                prefix + f.name, value, **{k: f.metadata[k] for k in ("at_least", "above") if k in f.metadata}
            )
    if spec.target_modules is not None and not spec.target_modules:
        raise SettingError("target_modules must hold at least one module-name ending, as in [query,value] (got [])")
    if spec.train.warmup_steps >= spec.train.steps:
        raise SettingError(f"train.warmup must be less than train.steps={spec.train.steps} (got {spec.train.warmup})")
    seconds = spec.checkpoint_seconds
    if (isinstance(seconds, str) and seconds != "auto") or (
        isinstance(seconds, int | float) and not 0 <= seconds < math.inf
    ):
        raise SettingError(f"checkpoint_seconds must be a number of at least 0, null or auto (got {seconds})")
    passes = spec.train.microbatches
    if passes != "auto" and (isinstance(passes, str) or passes < 1):
        raise SettingError(f"train.microbatches must be auto or a whole number of at least 1 (got {passes})")
    if spec.train.eval_steps < 1:
        raise SettingError(f"train.eval_every must be at least 1 step (got {spec.train.eval_every})")
    if (step := spec.train.observed_step) is not None and not 1 <= step <= spec.train.steps:
        raise SettingError(
            f"train.observe_scores must be a step from 1 to {spec.train.steps}, or a fraction of train.steps (got "
            f"{spec.train.observe_scores})"
        )
    _check_processes(spec)


def _check_number(name: str, value: Any, at_least: float | None = None, above: float | None = None) -> None:
    limit = at_least if at_least is not None else above
    if value is None or limit is None:
        return
    if not (math.isfinite(value) and (value >= limit if at_least is not None else value > limit)):
        kind = "a whole number" if isinstance(value, int) else "a number"
        raise SettingError(
            f"{name} must be {kind} {'of at least' if at_least is not None else 'above'} {limit} (got {value})"
        )


def _check_pieces(spec: Spec) -> None:
    """Build every piece that needs neither data nor model, so that it checks its settings before anything is loaded.
    The schedule is built for the budgets of one module."""
    for piece in (spec.init, spec.score, spec.penalty):
        if piece is not None:
            piece(seed=spec.seed)
    if spec.allocator is None or spec.schedule is None or spec.init_rank is None:
        return
    if spec.init_rank < spec.rank and spec.pruned_triplets == "trainable":
        raise SettingError(
            f"init_rank must be at least rank={spec.rank}, the mean final rank, with pruned_triplets=trainable "
            f"(got {spec.init_rank})"
        )
    schedule = spec.schedule(initial=spec.initial_rank, final=spec.rank, total=spec.train.steps)
    allocator = spec.allocator()
    if getattr(allocator, "grows", False) and spec.held_rank == spec.initial_rank >= spec.rank:
        raise SettingError(
            f"max_rank_factor must be above 1 with allocator={spec.allocator.name}, which activates further triplets "
            f"(got {spec.max_rank_factor})"
        )
    from adarank.allocators.allocator import check_progressive  # imports torch, which other settings do not need

    check_progressive(spec.compaction, spec.compact_after, allocator, schedule.initial, schedule.final)


def _check_processes(spec: Spec) -> None:
    """Check the settings that depend on the number of processes."""
    world = distributed.world()
    if spec.train.batch_size % world:
        raise SettingError(
            f"train.batch_size must be a multiple of {world}, the number of processes that share a batch "
            f"(got {spec.train.batch_size})"
        )
    if spec.train.shard == "fsdp2":
        _check_sharding(spec, world)


def _check_sharding(spec: Spec, world: int) -> None:
    def refuse(why: str) -> None:
        raise SettingError(f"train.shard=fsdp2 {why}; choose train.shard=none")

    if world == 1:
        refuse("has no effect in a single process (start it with torchrun --nproc-per-node=N)")
    from adarank.harness.run.parallel import can_shard  # imports torch, which other settings do not need

    if not can_shard():
        refuse("needs torch 2.7 or later")
    if spec.quantization is not None:
        refuse("cannot be combined with a 4-bit base, whose quantisation state FSDP2 drops")
    if spec.adapter is None and spec.train.optimizer != "adamw":
        refuse(f"cannot be combined with train.optimizer={spec.train.optimizer}, which cannot train sharded weights")
