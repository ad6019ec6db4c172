"""Declares every setting of a run once: its type, default, valid values, help sentence and identity default.

    YAML and command line ── Hydra checks types by `schema()` ──> validate.settle ──> Spec, frozen; all else reads it

To add a training setting, add a field to `TrainConfig` here and read it where it takes effect. A run's name is a digest
of the settings that affect its result and differ from their *identity default* (see `identity_of`), which is the
default that a setting had when it was introduced. Identity defaults never change, so that a new setting does not rename
old runs. If the user's default changes later, `identity=` keeps the old one, and so the runs that the change affects
get new names.
"""

import inspect
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, make_dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING as NOT_SET

from adarank.errors import SettingError
from adarank.pieces import needs_of

NEVER = object()  # as an identity default: the setting never enters a run's name
GROUPS = ("adapter", "init", "score", "allocator", "schedule", "penalty", "quantization", "task", "model", "tracker")
RUN_OR_NOT = ("force", "retry", "fail_fast")  # these settings only decide whether to run, and are not recorded
# Arguments that the laboratory passes to every piece of a group and that no setting can give. A piece requests further
# arguments with `adarank.pieces.needs`; an adapter gets only those arguments of its group that it requests.
PASSED = {
    "adapter": {"model", "rank", "targets", "init", "batches", "train"},
    "schedule": {"initial", "final", "total"},
    "quantization": {"model", "device", "precision"},
    "tracker": {"folder", "config", "name", "default_group", "fallback"},
}


def setting(default: Any = MISSING, help: str = "", **about: Any) -> Any:
    """A dataclass field that declares a setting.

    about: `choices`, the valid values; `at_least` or `above`, the lower limit of a number; `identity`, the identity
    default if it is not the default, or NEVER.
    """
    return field(default=default, metadata={"help": help, **about})


@dataclass(frozen=True)
class Piece:
    """One option of a group: the function that its YAML names as `_target_`, with its settings, ready to be called."""

    group: str
    target: str
    settings: Mapping[str, Any]

    @property
    def function(self) -> Callable[..., Any]:
        return locate(self.target)

    @property
    def name(self) -> str:
        """The function's name without its module, for messages and tables."""
        return self.target.rpartition(".")[2]

    @property
    def needs(self) -> frozenset[str]:
        """The arguments that the piece requests with `adarank.pieces.needs`."""
        return needs_of(self.function)

    def __call__(self, **offered: Any) -> Any:
        """Call the function with its settings and those of `offered` that its group always receives or that it
        requests.

        A setting that is given and not null takes precedence over a requested argument.
        """
        passed = self.needs | (PASSED.get(self.group, set()) if self.group != "adapter" else set())
        taken = {key: value for key, value in offered.items() if key in passed}
        given = {key: value for key, value in self.settings.items() if value is not None or key not in taken}
        return self.function(**{**taken, **given})

    def record(self) -> dict[str, Any]:
        """The piece as config.yaml holds it."""
        return {"_target_": self.target, **self.settings}

    def identity(self) -> dict[str, Any]:
        """The target and the settings that differ from the defaults in the function's signature.

        The signature's defaults are the identity defaults of a piece's settings. To change what users get by default,
        change the YAML, not the signature.
        """
        parameters = inspect.signature(self.function).parameters
        asked = {k for k in self.needs if self.settings.get(k) is None}  # these take the laboratory's value
        changed = {
            k: v
            for k, v in self.settings.items()
            if k not in asked and (k not in parameters or parameters[k].default != v)
        }
        return {"_target_": self.target, **changed}


def locate(target: str) -> Callable[..., Any]:
    """The function that a `_target_` names, with its module imported."""
    module, _, name = target.rpartition(".")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training loop's settings. A setting of type int | float is a number of steps if it is an int, and a fraction
    of `steps` if it is a float."""

    lr: float = setting(help="Peak learning rate; each method's YAML sets its own.", above=0)
    optimizer: str = setting(
        "adamw",
        "AdamW, or one of bitsandbytes' 8-bit versions (the paged one needs CUDA).",
        choices=("adamw", "adamw_8bit", "paged_adamw_8bit"),
    )
    head_lr: float | None = setting(
        None, "Peak learning rate of the model's new head (classifier or regressor); null means train.lr.", above=0
    )
    loraplus_lr_ratio: float = setting(
        1.0, "LoRA+: learning rate of B (P), as a multiple of the learning rate of everything else.", above=0
    )
    steps: int = setting(1000, "Number of optimiser steps.", at_least=1)
    batch_size: int = setting(32, "Rows per forward pass, counted over all processes.", at_least=1)
    group_by_length: bool = setting(
        False, "Batch rows of similar length together, which reduces padding but changes the order of the rows."
    )
    gradient_accumulation_steps: int = setting(1, "Forward passes per optimiser step.", at_least=1)
    microbatches: int | str = setting(
        "auto",
        "Split the rows of each forward pass by length into this many smaller passes, which gives the same gradient "
        "with less padding; auto chooses the number by a fixed rule.",
        identity=1,
    )
    warmup: int | float = setting(0.06, "Length of the linear warm-up, in steps or as a fraction of train.steps.")
    lr_scheduler: str = setting(
        "linear", "How the learning rate decays after warm-up.", choices=("linear", "cosine", "constant")
    )
    weight_decay: float = setting(0.0, "AdamW's weight decay, from which biases and norms are exempt.", at_least=0)
    max_grad_norm: float = setting(1.0, "Clip gradients to this norm; 0 disables clipping.", at_least=0)
    eval_every: int | float = setting(
        0.25, "Interval between evaluations on dev, in steps or as a fraction of train.steps.", identity=0.1
    )
    eval_share: float | None = setting(
        1.0,
        "If train.eval_every is a fraction, skip evaluations, but never the last one, that would bring the total of "
        "dev rows read above this multiple of the training rows seen so far; null skips none.",
        above=0,
        identity=None,
    )
    log_every: int = setting(10, "Number of steps between two records of the training loss.", at_least=1)
    observe_scores: int | float | None = setting(
        None,
        "Step, or fraction of train.steps, after which every module's scores are also recorded without an allocation; "
        "null records them only at allocations.",
        identity=NEVER,
    )
    precision: str = setting(
        "auto",
        "Compute dtype; bf16 uses autocast, and auto means bf16 on CUDA devices that support it and fp32 elsewhere.",
        choices=("auto", "fp32", "bf16"),
        identity="fp32",
    )
    packing: bool = setting(
        False, "Concatenate the rows of a forward pass instead of padding them (causal language models only)."
    )
    chunked_loss: bool | str = setting(
        "auto",
        "Compute the loss in chunks, so that the logits of all tokens are never in memory at once (causal language "
        "models only); auto does so if a forward pass has more than 2**28 logits and the model supports it.",
        choices=("auto", True, False),
    )
    capture: bool | str = setting(
        "auto",
        "Capture each training step as CUDA graphs; auto does so on CUDA if the step allows it, and true runs the same "
        "code without graphs on other devices.",
        choices=("auto", True, False),
        identity=NEVER,
    )
    gradient_checkpointing: bool = setting(
        False, "Recompute activations in the backward pass instead of storing them.", identity=NEVER
    )
    shard: str = setting(
        "none",
        "fsdp2 shards the frozen weights (with full fine-tuning, all weights) over the processes that torchrun starts.",
        choices=("none", "fsdp2"),
        identity=NEVER,
    )

    @property
    def warmup_steps(self) -> int:
        return as_steps("train.warmup", self.warmup, self.steps)

    @property
    def eval_steps(self) -> int:
        """The number of steps between two evaluations on dev, at least 1."""
        return as_steps("train.eval_every", self.eval_every, self.steps, minimum=1)

    @property
    def observed_step(self) -> int | None:
        """The step, counted from 1, after which scores are recorded without an allocation; None: there is none."""
        if self.observe_scores is None:
            return None
        return as_steps("train.observe_scores", self.observe_scores, self.steps, minimum=1)

    def evaluation_steps(self, dev: int) -> list[int]:
        """The steps after which the run evaluates on dev, which has `dev` rows; the last step is always one of them."""
        share = self.eval_share if isinstance(self.eval_every, float) else None
        rows, read, steps = self.batch_size * self.gradient_accumulation_steps, 0, []
        for step in range(self.eval_steps, self.steps, self.eval_steps):
            if share is None or read + dev <= share * rows * step:
                steps.append(step)
                read += dev
        return [*steps, self.steps]

    def skipped_evaluations(self, dev: int) -> int:
        """How many evaluations on dev, which has `dev` rows, `eval_share` skips."""
        return len(replace(self, eval_share=None).evaluation_steps(dev)) - len(self.evaluation_steps(dev))

    def identity(self) -> dict[str, Any]:
        """The settings that affect the result and differ from their identity defaults, compared in whole steps."""
        steps = {"warmup": self.warmup_steps, "eval_every": self.eval_steps}
        changed = {}
        for f in fields(self):
            default, value = identity_default(f), steps.get(f.name, getattr(self, f.name))
            if f.name in steps:
                default = as_steps(f"train.{f.name}", default, self.steps, minimum=int(f.name == "eval_every"))
            if default is not NEVER and value != default:
                changed[f.name] = value
        return changed


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    unit: str = setting(
        "triplets",
        "The unit of budgets: triplets, or parameters (a triplet has d_in + d_out + 1 of them).",
        choices=("triplets", "parameters"),
    )


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One run's settings, resolved and checked. The fields' help explains them; a group holds a `Piece`, or None for
    none.

    init_rank is a number whenever ranks adapt or come from another run, a schedule's steps are whole numbers, and
    train.precision is fp32 or bf16.
    """

    method: str = setting(help="The method, a file in conf/method; it labels the run.", identity=NEVER)
    rank: int = setting(8, "Mean final rank per module, for every low-rank method.", at_least=1)
    init_rank: int | None = setting(
        None, "Rank per module at which an adaptive method starts; null means ceil(1.5 * rank).", at_least=1
    )
    targets: str = setting("all", "Which modules to adapt: qv, qkv, attention, mlp, all or experts.")
    target_modules: list[str] | None = setting(
        None, "Endings of the names of the modules to adapt, as in [query,value]; replaces targets."
    )
    ranks_from: str | None = setting(
        None, "Folder of a finished run whose final ranks are used, fixed from the first step, instead of allocating."
    )
    ranks_shuffle: str = setting(
        "none",
        "Whether to permute the ranks of ranks_from: within_family among modules of one kind, all among all modules, "
        "reversed so that the module with the highest rank gets the lowest.",
        choices=("none", "within_family", "all", "reversed"),
    )
    ranks_shuffle_seed: int = setting(
        0, "Seed of ranks_shuffle, which draws the permutation, or the order of equal ranks.", at_least=0
    )
    seed: int = setting(0, "Seed of the head, the factors, the order of the rows and dropout.", at_least=0)
    holdout: int | float | None = setting(
        None, "Training rows, or fraction of them, to hold out as dev; the task's test or dev set becomes the test set."
    )
    test: bool = setting(True, "Measure the test set after training; false measures only dev, as for tuning.")
    arm: str | None = setting(
        None, "The name that a study gives to this configuration; it only labels the run.", identity=NEVER
    )
    out: str = setting("runs", "The folder in which run folders are created.", identity=NEVER)
    tiny: bool = setting(
        False,
        "Shrink model, data and steps, so that a run takes seconds; typed settings take precedence.",
        identity=NEVER,
    )
    force: bool = setting(False, "Run again even if the run is finished.", identity=NEVER)
    retry: str = setting(
        "none",
        "Which runs to retry: failed retries failed runs, from their checkpoints if they have them.",
        choices=("none", "failed"),
        identity=NEVER,
    )
    fail_fast: bool = setting(False, "Stop a sweep at its first failed run.", identity=NEVER)
    checkpoint_seconds: int | float | str | None = setting(
        "auto",
        "The most seconds of work that a killed run loses; 0 saves a checkpoint at every record, null never saves, and "
        "auto saves at most once a minute and spends less than 5 % of the time on it.",
        identity=NEVER,
    )
    compaction: str = setting(
        "off",
        "When pruned triplets are dropped from memory: off never drops them, final does so once the budget is final, "
        "and progressive starts earlier.",
        choices=("off", "final", "progressive"),
    )
    compact_after: int | None = setting(
        5,
        "With compaction=progressive, drop a triplet after this many consecutive allocations without it; null never "
        "does.",
        at_least=1,
    )
    variant: str = setting(
        "exact",
        "Which version of AdaLoRA to train; docs/algorithm.md explains them.",
        choices=("exact", "original", "paper"),
    )
    pruned_triplets: str = setting(
        "trainable",
        "Between allocations, a pruned triplet is trainable (so that it may return), frozen, or masked in the forward "
        "pass.",
        choices=("trainable", "frozen", "masked"),
    )
    svd_before_allocation: bool = setting(
        False, "Replace every ΔW by its singular value decomposition before each allocation."
    )
    magnitude_after_pruning: str = setting(
        "keep",
        "What an allocation does to DoRA's magnitude m: keep it, rescale it so that m / ‖W + ΔW‖ is unchanged, or "
        "reset it to ‖W + ΔW‖.",
        choices=("keep", "rescale", "reset"),
    )
    max_rank_factor: float = setting(
        1.0,
        "For methods that grow: the number of triplets held per module, as a multiple of the larger of init_rank and "
        "rank.",
        at_least=1,
    )
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    train: TrainConfig
    adapter: Piece | None = None
    init: Piece | None = None
    score: Piece | None = None
    allocator: Piece | None = None
    schedule: Piece | None = None
    penalty: Piece | None = None
    quantization: Piece | None = None
    task: Piece | None = None
    model: Piece | None = None
    tracker: Piece | None = None

    @property
    def low_rank(self) -> bool:
        """Whether the method's adapter is made of triplets."""
        return self.takes("init")

    @property
    def adaptive(self) -> bool:
        """Whether ranks change during training."""
        return self.allocator is not None

    @property
    def initial_rank(self) -> int:
        """Triplets per module at the first step: init_rank if ranks adapt, else rank."""
        return self.init_rank if self.adaptive and self.init_rank is not None else self.rank

    @property
    def held_rank(self) -> int:
        """Triplets per module in memory: the initial rank, or up to max_rank_factor times as many if the method
        grows."""
        if not self.adaptive or self.pruned_triplets == "trainable":
            return self.initial_rank
        return math.ceil(self.max_rank_factor * max(self.initial_rank, self.rank))

    def takes(self, name: str) -> bool:
        """Whether the method's adapter requests `name` (rank, targets, init, …)."""
        return self.adapter is not None and name in self.adapter.needs

    @property
    def has_magnitude(self) -> bool:
        """Whether the method's adapter trains DoRA's magnitudes."""
        from adarank.adapters import magnitude, parametrisation  # imports torch, which most settings do not need

        found = parametrisation.lookup(self.adapter.settings.get("adapter")) if self.adapter is not None else None
        return found is not None and found.module is magnitude.Magnitude

    def without_effect(self) -> dict[str, str]:
        """{setting: reason} for each setting that has no effect on this run. rank, targets and budget.unit, which
        a comparison gives to all its methods, are never refused on these grounds, but do not enter the run's name
        either."""
        idle: dict[str, str] = {}
        if not self.adaptive:
            idle |= {"init_rank": "its rank is fixed", "max_rank_factor": "its rank is fixed"}
            idle |= dict.fromkeys(("compaction", "pruned_triplets", "magnitude_after_pruning"), "it prunes nothing")
            idle |= dict.fromkeys(("svd_before_allocation", "budget.unit"), "it allocates no budget")
            if self.penalty is None:
                idle["variant"] = "it has no controller"
        elif self.pruned_triplets == "trainable":
            idle["max_rank_factor"] = "with pruned_triplets=trainable the number of triplets held never grows"
        if self.adaptive and not self.has_magnitude:
            idle["magnitude_after_pruning"] = "its adapter has no magnitude"
        if self.score is None:
            idle["train.observe_scores"] = "it has no score"
        if not isinstance(self.train.eval_every, float):
            idle["train.eval_share"] = "train.eval_every is a number of steps, none of which is skipped"
        if self.compaction != "progressive":
            idle["compact_after"] = f"compaction={self.compaction} does not count allocations"
        if self.ranks_from is None:
            idle["ranks_shuffle"] = "ranks_from is null, so there are no ranks to permute"
        if self.ranks_shuffle == "none":
            idle["ranks_shuffle_seed"] = "ranks_shuffle=none draws no permutation"
        if not self.low_rank:
            idle |= {"train.loraplus_lr_ratio": "it has no B", "ranks_from": "it has no ranks"}
        if not self.takes("targets"):
            idle["target_modules"] = "it has no adapter" if self.adapter is None else "its adapter has no targets"
        return idle

    def paths(self) -> dict[str, str]:
        """{setting: absolute path} of the local files and folders that the run reads, so that it can be reopened from
        any working directory. A name from a fixed list (task.name=cola) is not a path."""
        given: dict[str, Any] = {} if self.ranks_from is None else {"ranks_from": self.ranks_from}
        for piece in filter(None, (self.task, self.model)):
            hints = typing.get_type_hints(piece.function)
            free = [key for key in ("path", "name") if typing.get_origin(hints.get(key)) is not typing.Literal]
            given |= {f"{piece.group}.{key}": piece.settings[key] for key in free if piece.settings.get(key)}
        places = {name: Path(value).expanduser().absolute() for name, value in given.items()}
        return {name: str(place) for name, place in places.items() if place.exists()}

    def record(self) -> dict[str, Any]:
        """The settings as config.yaml holds them: plain values, without the settings that only decide whether to
        run."""
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in RUN_OR_NOT}

        def plain(value: Any) -> Any:
            if isinstance(value, TrainConfig | BudgetConfig):
                return {f.name: getattr(value, f.name) for f in fields(value)}
            return value.record() if isinstance(value, Piece) else value

        return {name: plain(value) for name, value in kept.items()}


def spec_of(record: Mapping[str, Any], paths: Mapping[str, str] | None = None) -> Spec:
    """The inverse of `Spec.record`.

    paths: what `Spec.paths` returned when the run began; each path that still exists replaces the path as typed. A
    setting that is missing from the record is newer than the run and gets its identity default. Raises SettingError for
    a setting that this version does not know.
    """
    settings = dict(record)
    for name, path in (paths or {}).items():
        if Path(path).exists():
            group, _, key = name.rpartition(".")
            settings |= {group: {**settings[group], key: path}} if group else {key: path}
    parts: dict[str, Any] = {"train": TrainConfig, "budget": BudgetConfig}
    for name, part in parts.items():
        if name in settings:
            settings[name] = part(**_known(part, settings[name], f"{name}."))
    for group in GROUPS:
        if (node := settings.get(group)) is not None:
            target = node["_target_"]
            settings[group] = Piece(group, target, {k: v for k, v in node.items() if k != "_target_"})
    return Spec(**_known(Spec, settings, ""))


def _known(cls: Any, settings: Mapping[str, Any], prefix: str) -> Mapping[str, Any]:
    if unknown := sorted(settings.keys() - {f.name for f in fields(cls)}):
        raise SettingError(
            f"the run's config.yaml contains {prefix}{unknown[0]}, which this version of adarank does not know; it was "
            "written by another version"
        )
    newer = {f.name: f.metadata.get("identity", NEVER) for f in fields(cls) if f.name not in settings}
    return {**{name: value for name, value in newer.items() if value is not NEVER}, **settings}


def identity_default(f: "Field[Any]") -> Any:
    """The value at which a setting does not enter a run's name; NEVER if no value of it does."""
    return f.metadata.get("identity", f.default)


def as_steps(name: str, value: float, total: int, minimum: int = 0) -> int:
    """A number of steps, given as such (int) or as a fraction of `total` (a float in [0, 1)), which yields at least
    `minimum` steps."""
    if isinstance(value, bool) or not math.isfinite(value) or value < 0 or (isinstance(value, float) and value >= 1):
        raise SettingError(
            f"{name} must be a whole number of steps or a fraction of train.steps from 0 up to 1 (got {value})"
        )
    return max(round(value * total), minimum) if isinstance(value, float) else value


def schema() -> type:
    """The tree of settings against which Hydra checks types. Groups are untyped here; their schema is the signature of
    the function that their `_target_` names."""
    parts = {cls: _schema_of(cls, {}) for cls in (TrainConfig, BudgetConfig)}
    return _schema_of(Spec, parts)


def _schema_of(cls: Any, parts: Mapping[Any, type]) -> type:
    hints = typing.get_type_hints(cls)
    made: list[Any] = []
    for f in fields(cls):
        hint = hints[f.name]
        if hint in parts:
            made.append((f.name, parts[hint], field(default_factory=parts[hint])))
        elif f.name in GROUPS:
            made.append((f.name, Any, field(default=None)))
        else:
            made.append((f.name, hint, field(default=NOT_SET if f.default is MISSING else f.default)))
    return make_dataclass(cls.__name__, made)


def register() -> None:
    """Register the schema, which conf/config.yaml names in its defaults list, with Hydra."""
    ConfigStore.instance().store(group="schema", name="run", node=schema(), package="_global_")
