"""Translates Hydra's and OmegaConf's errors into one sentence: the setting, its value and what would be valid."""

import difflib
import re
from collections.abc import Iterable
from typing import Any

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from adarank.errors import SettingError

# Former names of settings, and their present names.
RENAMED = {
    "mode": "variant",
    "pruned": "pruned_triplets (learning is now trainable)",
    "basis": "svd_before_allocation (basis=singular is svd_before_allocation=true)",
    "capacity": "max_rank_factor",
    "patience": "compact_after",
    "train.accumulation": "train.gradient_accumulation_steps",
    "train.clip": "train.max_grad_norm",
    "train.decay": "train.lr_scheduler",
    "train.checkpoint_activations": "train.gradient_checkpointing",
    "train.lr_ratio": "train.loraplus_lr_ratio",
    "allocator.worth": "allocator.importance_of",
    "allocator.exchange": "allocator.swaps",
    "allocator.lowest": "allocator.candidates_per_module",
    "penalty.xi": "penalty.sparsity",
    "allocator=map": "ranks_from=RUN",
    "allocator.source": "ranks_from",
    "allocator.shuffle": "ranks_shuffle",
    "targets=modules": "target_modules=[…] alone",
}


def renamed(name: str) -> str | None:
    """The message for a setting or an option that has been renamed; None if `name` has not."""
    return f"{name} is now {RENAMED[name]}" if name in RENAMED else None


def near(name: str, names: Iterable[str]) -> str:
    """`similar names: a, b` or, if no name is similar, `choose from …` with all of them."""
    names = sorted(str(n) for n in names if not str(n).startswith("_"))
    close = difflib.get_close_matches(name, names, n=4, cutoff=0.5)
    return f"similar names: {', '.join(close)}" if close else f"choose from {', '.join(names) or 'nothing'}"


def sentence(error: BaseException) -> str:
    """The error as one line."""
    if isinstance(error, SettingError):
        return str(error)
    if isinstance(error, MissingConfigException):
        return _no_such_option(error)
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} cannot be read as a setting; write key=value"
    if isinstance(error, OSError):
        return f"{error.filename} cannot be written or read ({error.strerror}); choose another out=FOLDER"
    first = str(error).partition("\n")[0].rstrip(".")
    cause = _omegaconf_cause(error)
    if cause is None:
        return first.replace("Ambiguous value for argument", "several values for") + _how_to_sweep(first)
    override = re.search(r"(?:config use \+|merging override )(\S*)", str(error))
    return _about_key(cause, override.group(1) if override else "")


def _omegaconf_cause(error: BaseException | None) -> Any:
    while error is not None and not isinstance(error, OmegaConfBaseException):
        error = error.__cause__ or error.__context__
    return error


def _how_to_sweep(first: str) -> str:
    return "; add -m to sweep over them" if first.startswith("Ambiguous") else ""


def _no_such_option(error: MissingConfigException) -> str:
    found = re.search(r"Could not (?:find|load) '([^']+)'", str(error))
    if not found:
        return str(error).partition("\n")[0]
    group, _, option = found.group(1).rpartition("/")
    return renamed(f"{group}={option}") or f"{group} has no option {option}; {near(option, error.options or [])}"


def _about_key(cause: Any, override: str) -> str:
    key = str(cause.full_key or cause.key)
    shown = override or key
    parent = cause.parent_node
    if told := renamed(key):
        return told
    if type(cause).__name__ in ("ConfigAttributeError", "ConfigKeyError"):
        if isinstance(parent, DictConfig) and parent.get("_target_", "") is None:
            group = key.rpartition(".")[0]
            return f"{shown} has no effect, because {group} is none here; remove it or choose another method"
        names = list(parent) if isinstance(parent, DictConfig) else []
        return f"{shown}: there is no setting {key}; {near(str(cause.key), names)}"
    reason = str(cause).partition("\n")[0]
    types = {"Float": "a number", "Integer": "a whole number", "Boolean": "true or false"}
    if wanted := re.search(r"could not be converted to (\w+)", reason):
        return f"{key} must be {types.get(wanted.group(1), wanted.group(1))}{_got(override)}"
    if "Union[int, float]" in reason:
        return f"{key} must be a number of steps or a fraction of train.steps{_got(override)}"
    if "Union[bool, str]" in reason:
        return f"{key} must be auto, true or false{_got(override)}"
    if "not Optional" in reason:
        return f"{key} must have a value{_got(override)}"
    if "Missing mandatory value" in reason or type(cause).__name__ == "MissingMandatoryValue":
        return f"{key} is not set; set {key}=VALUE"
    return f"{shown}: {reason}"


def listed(choices: Iterable[Any]) -> str:
    """The valid values of a setting as a user types them: auto, true, false."""
    return ", ".join(str(choice).lower() if isinstance(choice, bool) else str(choice) for choice in choices)


def _got(override: str) -> str:
    return f" (got {override.partition('=')[2] or 'nothing'})" if "=" in override else ""
