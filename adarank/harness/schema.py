"""The typed top level of a run's settings. Light to import: the command line answers before torch is loaded."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


class Retry(StrEnum):
    none = "none"
    failed = "failed"


class Unit(StrEnum):
    triplets = "triplets"
    parameters = "parameters"


class Pruned(StrEnum):
    learning = "learning"
    frozen = "frozen"
    masked = "masked"


class Basis(StrEnum):
    learned = "learned"
    singular = "singular"


class Compaction(StrEnum):
    off = "off"
    final = "final"
    progressive = "progressive"


class Mode(StrEnum):
    exact = "exact"
    original = "original"
    paper = "paper"


class Decay(StrEnum):
    linear = "linear"
    cosine = "cosine"
    constant = "constant"


class Optimizer(StrEnum):
    adamw = "adamw"
    adamw_8bit = "adamw_8bit"
    paged_adamw_8bit = "paged_adamw_8bit"


class Precision(StrEnum):
    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


class Shard(StrEnum):
    none = "none"
    fsdp2 = "fsdp2"


@dataclass
class Train:
    """Fields of type int | float are steps where whole, fractions of train.steps where between 0 and 1."""

    lr: float = MISSING
    optimizer: Optimizer = MISSING
    lr_ratio: float = MISSING
    steps: int = MISSING
    batch_size: int = MISSING
    group_by_length: bool = MISSING
    accumulation: int = MISSING
    warmup: int | float = MISSING
    decay: Decay = MISSING
    weight_decay: float = MISSING
    clip: float = MISSING
    eval_every: int | float = MISSING
    log_every: int = MISSING
    precision: Precision = MISSING
    checkpoint_activations: bool = MISSING
    shard: Shard = MISSING


@dataclass
class Budget:
    unit: Unit = MISSING


@dataclass
class Settings:
    """Groups are untyped here: their schema is the signature of the function that their _target_ names."""

    method: str = MISSING
    rank: int = MISSING
    init_rank: int | None = None
    targets: str = MISSING
    target_modules: list[str] | None = None
    seed: int = MISSING
    holdout: int | float | None = None
    out: str = MISSING
    tiny: bool = MISSING
    force: bool = MISSING
    retry: Retry = MISSING
    checkpoint_seconds: float | None = None
    compaction: Compaction = MISSING
    patience: int | None = None
    mode: Mode = MISSING
    pruned: Pruned = MISSING
    basis: Basis = MISSING
    capacity: float = MISSING
    budget: Budget = field(default_factory=Budget)
    train: Train = field(default_factory=Train)
    adapter: Any = None
    init: Any = None
    score: Any = None
    allocator: Any = None
    schedule: Any = None
    penalty: Any = None
    quantization: Any = None
    task: Any = None
    model: Any = None
    tracker: Any = None


def register() -> None:
    ConfigStore.instance().store(group="schema", name="run", node=Settings, package="_global_")
