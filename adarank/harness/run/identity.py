"""A run's name (a digest of everything that affects its result) and its provenance (code and package versions)."""

import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from adarank.harness.config.spec import NEVER, Spec, identity_default
from adarank.harness.data.task_types import TASK_TYPES
from adarank.harness.data.tasks.base import Task
from adarank.harness.models import Base
from adarank.harness.run.microbatches import why_one_pass
from adarank.harness.run.ranks_from import RankMap

RECIPE = 1  # increase by hand when the same settings give different results
# Settings that enter a name indirectly, through the piece, the data or the module names that they determine.
ELSEWHERE = {"rank", "init_rank", "targets", "target_modules", "ranks_from", "seed", "holdout", "max_rank_factor"}
PIECES = ("adapter", "init", "score", "allocator", "schedule", "penalty", "quantization")


def decides(
    spec: Spec, task: Task, base: Base, dtype: str, targets: str | list[str] | None, rank_map: RankMap | None
) -> dict[str, Any]:
    """Everything but the seed that affects a run's result and differs from its identity default.

    The effect of a setting counts, not how it was typed: local data, local models and the ranks of another run enter by
    their content, `targets` as the adapter gets them (a list in any order), and settings without effect do not enter.
    dtype: that of the frozen weights; it enters unless it and the checkpoint's are both fp32 or both fp64.
    """
    idle = spec.without_effect()
    if not spec.train.skipped_evaluations(len(task.dev)):
        idle["train.eval_share"] = "it skips no evaluations"
    if spec.train.microbatches == "auto" and (why := why_one_pass(spec, TASK_TYPES[task.task_type])):
        idle["train.microbatches"] = why
    steps = {} if spec.schedule is None else spec.schedule.settings
    if steps.get("from_t_i") and steps["t_i"] % steps["interval"] == 0:
        idle["schedule.from_t_i"] = "t_i is a multiple of the interval, so that it allocates after the same steps"
    found: dict[str, Any] = {}
    for f in fields(spec):
        default, value = identity_default(f), getattr(spec, f.name)
        simple = isinstance(value, str | int | float | None)
        if simple and default is not NEVER and value != default and f.name not in idle and f.name not in ELSEWHERE:
            found[f.name] = value
    for group in PIECES:
        if (piece := getattr(spec, group)) is not None:
            found[group] = {key: value for key, value in piece.identity().items() if f"{group}.{key}" not in idle}
    if spec.takes("rank"):
        found["adapter"]["rank"] = spec.held_rank
    if spec.takes("targets"):
        found["adapter"]["targets"] = sorted(set(targets)) if isinstance(targets, list) else targets
    if spec.adaptive:
        found["budget"] = {"initial_rank": spec.initial_rank, "rank": spec.rank}
        if spec.budget.unit != "triplets":
            found["budget"]["unit"] = spec.budget.unit
    if rank_map is not None:
        found["ranks"] = rank_map._asdict()
    train = {key: value for key, value in spec.train.identity().items() if f"train.{key}" not in idle}
    rows = {"fingerprint": task.fingerprint, "metrics": list(task.metrics), "max_length": task.max_length}
    if (base.stored, dtype) not in (("fp32", "fp32"), ("fp64", "fp64")):
        found["dtype"] = dtype
    if base.attention != "auto":
        found["attention"] = base.attention
    about = {**rows, "task_type": task.task_type, **task.options}
    return {**found, "train": train, "task": about, "model": base.fingerprint}


def digest(deciding: Mapping[str, Any]) -> str:
    """The first ten hex digits of the SHA-256 of the canonical JSON of everything but the seed that affects a
    result."""
    canonical = json.dumps({**deciding, "recipe": RECIPE}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:10]


def run_folder(out: str, method: str, deciding: Mapping[str, Any], seed: int) -> Path:
    """`OUT/<method>-<digest>-s<seed>`."""
    return Path(out).expanduser() / f"{method}-{digest(deciding)}-s{seed}"


def title(spec: Spec) -> str:
    """A readable name: adalora-r8-qkv-s0, adalora-nf4-r8-qkv-s0."""
    parts = [spec.method]
    if spec.quantization is not None:
        parts.append(spec.quantization.name)
    if spec.takes("rank"):
        parts += [f"r{spec.rank}", spec.targets]
    return "-".join([*parts, f"s{spec.seed}"])


def provenance() -> dict[str, Any]:
    """commit and dirty (of the checkout from which adarank runs; null outside a checkout), and versions."""
    package = Path(__file__).resolve().parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(package), *words], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    tracked = git("ls-files", "--error-unmatch", Path(__file__).name) is not None
    commit = git("rev-parse", "HEAD") if tracked else None
    dirty = bool(git("status", "--porcelain", "--untracked-files=no")) if commit else None
    versions = {"python": platform.python_version()}
    for package_name in ("adarank", "torch", "transformers", "numpy", "hydra-core"):
        try:
            versions[package_name] = version(package_name)
        except PackageNotFoundError:
            versions[package_name] = "not installed"
    return {"commit": commit, "dirty": dirty, "versions": versions}
