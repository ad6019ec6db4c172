"""Every setting of a run, declared once: its type, its default, what is valid, one sentence of help, and its identity.

    YAML and command line ── Hydra checks types by `schema()` ──> validate.settle ──> Spec, frozen; all else reads it

To add a training setting, add a field to `TrainConfig` here and read it where it acts. A run's name is a digest of the
settings that decide its result and that differ from their *identity default* (see `identity_of`): the default that a
setting had when it was introduced. It never changes, so that a new setting renames no old run; a default that changes
later keeps the old identity default (`identity=`) and so renames the runs that it changes.
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

NEVER = object()  # as an identity default: the setting decides no result
GROUPS = ("adapter", "init", "score", "allocator", "schedule", "penalty", "quantization", "task", "model", "tracker")
RUN_OR_NOT = ("force", "retry", "fail_fast")  # settings that say only whether to run, and are not recorded
# What the laboratory passes to every piece of a group, and no setting can give. Other arguments are asked for by
# `adarank.pieces.needs`; of an adapter's, only those that it asks for are passed.
PASSED = {
    "adapter": {"model", "rank", "targets", "init", "batches", "train"},
    "schedule": {"initial", "final", "total"},
    "quantization": {"model", "device", "precision"},
    "tracker": {"folder", "config", "name", "default_group", "fallback"},
}


def setting(default: Any = MISSING, help: str = "", **about: Any) -> Any:
    """A dataclass field that is a setting.

    about: `choices`, the valid values; `at_least` or `above`, the smallest valid number; `identity`, the identity
    default where it is not the default, or NEVER.
    """
    return field(default=default, metadata={"help": help, **about})


@dataclass(frozen=True)
class Piece:
    """One option of a group, ready to be called: the function that its YAML names as `_target_`, with its settings."""

    group: str
    target: str
    settings: Mapping[str, Any]

    @property
    def function(self) -> Callable[..., Any]:
        return locate(self.target)

    @property
    def name(self) -> str:
        """The function's own name, as it is shown."""
        return self.target.rpartition(".")[2]

    @property
    def needs(self) -> frozenset[str]:
        """What the piece asks for with `adarank.pieces.needs`."""
        return needs_of(self.function)

    def __call__(self, **offered: Any) -> Any:
        """Call the function with its settings and, of `offered`, what its group is always passed or what it asks for.

        A setting that is given and is not null wins over an argument that was asked for.
        """
        passed = self.needs | (PASSED.get(self.group, set()) if self.group != "adapter" else set())
        taken = {key: value for key, value in offered.items() if key in passed}
        given = {key: value for key, value in self.settings.items() if value is not None or key not in taken}
        return self.function(**{**taken, **given})

    def record(self) -> dict[str, Any]:
        """The piece as config.yaml holds it."""
        return {"_target_": self.target, **self.settings}

    def identity(self) -> dict[str, Any]:
        """The target, and the settings that differ from the defaults in the function's signature.

        The signature's defaults are the identity defaults of a piece's settings: to change what users get, change the
        YAML, not the signature.
        """
        parameters = inspect.signature(self.function).parameters
        asked = {k for k in self.needs if self.settings.get(k) is None}  # the laboratory's value is used
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
    """The training loop's settings. Those of type int | float are steps where whole, fractions of `steps` between 0 and 1."""

    lr: float = setting(help="Peak learning rate; the method's YAML gives one.", above=0)
    optimizer: str = setting(
        "adamw",
        "AdamW, or one of bitsandbytes' 8-bit versions (paged: CUDA only).",
        choices=("adamw", "adamw_8bit", "paged_adamw_8bit"),
    )
    loraplus_lr_ratio: float = setting(
        1.0, "LoRA+: learning rate of B (P) divided by that of everything else.", above=0
    )
    steps: int = setting(1000, "Optimiser steps.", at_least=1)
    batch_size: int = setting(32, "Rows of one forward pass, over all processes.", at_least=1)
    group_by_length: bool = setting(False, "Batch rows of similar length: less padding, in another order of the rows.")
    gradient_accumulation_steps: int = setting(1, "Forward passes of one optimiser step.", at_least=1)
    microbatches: int | str = setting(
        "auto",
        "Divide the rows of a forward pass by length into so many passes: the same gradient with less padding; auto: as "
        "many as pay, by a fixed rule.",
        identity=1,
    )
    warmup: int | float = setting(0.06, "Linear warm-up, in steps or as a fraction of train.steps.")
    lr_scheduler: str = setting(
        "linear", "How the learning rate falls after warm-up.", choices=("linear", "cosine", "constant")
    )
    weight_decay: float = setting(0.0, "AdamW's weight decay, not applied to biases and norms.", at_least=0)
    max_grad_norm: float = setting(1.0, "Gradients are clipped to this norm; 0 switches clipping off.", at_least=0)
    eval_every: int | float = setting(
        0.25, "Evaluate on dev every so many steps, or fractions of train.steps.", identity=0.1
    )
    eval_share: float | None = setting(
        1.0,
        "Where train.eval_every is a fraction, skip evaluations, but not the last, that would bring the rows of dev read "
        "to more than this many times the rows trained; null: skip none.",
        above=0,
        identity=None,
    )
    log_every: int = setting(10, "Record the training loss every so many steps.", at_least=1)
    observe_scores: int | float | None = setting(
        None,
        "Record every module's scores after this step, or fraction of train.steps, too, without allocating; null: only at "
        "allocations.",
        identity=NEVER,
    )
    precision: str = setting(
        "auto",
        "Compute dtype (bf16: autocast); auto is bf16 on CUDA devices that have it, else fp32.",
        choices=("auto", "fp32", "bf16"),
        identity="fp32",
    )
    packing: bool = setting(
        False, "Put the rows of a forward pass end to end in place of padding them (causal language models)."
    )
    chunked_loss: bool | str = setting(
        "auto",
        "Never hold the logits of all tokens at once (causal language models); auto: where a forward pass has more than "
        "2**28 logits and the model can.",
        choices=("auto", True, False),
    )
    capture: bool | str = setting(
        "auto",
        "Run each step as CUDA graphs; auto: on CUDA, where the step allows it; true: elsewhere the same code without graphs.",
        choices=("auto", True, False),
        identity=NEVER,
    )
    gradient_checkpointing: bool = setting(
        False, "Recompute activations in the backward pass instead of keeping them.", identity=NEVER
    )
    shard: str = setting(
        "none",
        "fsdp2: under torchrun, hold frozen weights (in full fine-tuning all) in pieces.",
        choices=("none", "fsdp2"),
        identity=NEVER,
    )

    @property
    def warmup_steps(self) -> int:
        return as_steps("train.warmup", self.warmup, self.steps)

    @property
    def eval_steps(self) -> int:
        """Steps between two evaluations on dev, at least 1."""
        return as_steps("train.eval_every", self.eval_every, self.steps, minimum=1)

    @property
    def observed_step(self) -> int | None:
        """The step after which scores are recorded without an allocation, from 1; None for none."""
        if self.observe_scores is None:
            return None
        return as_steps("train.observe_scores", self.observe_scores, self.steps, minimum=1)

    def evaluation_steps(self, dev: int) -> list[int]:
        """The steps after which dev, of so many rows, is evaluated; the last step is always one of them."""
        share = self.eval_share if isinstance(self.eval_every, float) else None
        rows, read, steps = self.batch_size * self.gradient_accumulation_steps, 0, []
        for step in range(self.eval_steps, self.steps, self.eval_steps):
            if share is None or read + dev <= share * rows * step:
                steps.append(step)
                read += dev
        return [*steps, self.steps]

    def skipped_evaluations(self, dev: int) -> int:
        """How many evaluations of dev, of so many rows, `eval_share` skips."""
        return len(replace(self, eval_share=None).evaluation_steps(dev)) - len(self.evaluation_steps(dev))

    def identity(self) -> dict[str, Any]:
        """The settings that decide the result and differ from their identity defaults; steps are compared as whole steps."""
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
        "What budgets count: triplets, or parameters (a triplet takes d_in + d_out + 1).",
        choices=("triplets", "parameters"),
    )


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One run's settings, resolved and checked. See the fields' help; the groups hold a `Piece`, or None for none.

    init_rank is a number wherever ranks adapt or come from another run; a schedule's steps are whole; train.precision
    is fp32 or bf16.
    """

    method: str = setting(help="The method, a file of conf/method; a label on the run.", identity=NEVER)
    rank: int = setting(8, "Mean rank per module at the end, for every low-rank method.", at_least=1)
    init_rank: int | None = setting(
        None, "Rank per module where an adaptive method starts; null: ceil(1.5 * rank).", at_least=1
    )
    targets: str = setting("all", "Which modules are adapted: qv, qkv, attention, mlp, all or experts.")
    target_modules: list[str] | None = setting(
        None, "Endings of module names to adapt, in place of targets: [query,value]."
    )
    ranks_from: str | None = setting(
        None, "A finished run's folder: train its final ranks, fixed from the first step, in place of allocating."
    )
    ranks_shuffle: str = setting(
        "none",
        "Permute the ranks of ranks_from between modules of one kind, or between all.",
        choices=("none", "within_family", "all"),
    )
    ranks_shuffle_seed: int = setting(0, "Seed of that permutation.", at_least=0)
    seed: int = setting(0, "Seed of the head, the factors, the order of the rows and dropout.", at_least=0)
    holdout: int | float | None = setting(
        None, "Training rows, or a fraction of them, that become dev; the task's test or dev set is then reported."
    )
    test: bool = setting(True, "Measure the test set after training; false, for tuning: dev alone.")
    arm: str | None = setting(
        None, "The name that a study gives to this configuration; a label on the run.", identity=NEVER
    )
    out: str = setting("runs", "The folder that receives the run folders.", identity=NEVER)
    tiny: bool = setting(
        False, "Make everything small, so that a run takes seconds; typed settings win.", identity=NEVER
    )
    force: bool = setting(False, "Run again what is finished.", identity=NEVER)
    retry: str = setting(
        "none",
        "failed: run again what failed, from its checkpoint where it has one.",
        choices=("none", "failed"),
        identity=NEVER,
    )
    fail_fast: bool = setting(False, "Stop a sweep at its first failure.", identity=NEVER)
    checkpoint_seconds: int | float | str | None = setting(
        "auto",
        "At most this many seconds are lost when a run is killed; 0: save at every record; null: never save; auto: at "
        "most once a minute, and so that saving takes less than 5 % of the time.",
        identity=NEVER,
    )
    compaction: str = setting(
        "off",
        "off: pruned triplets stay in memory; final: dropped once the budget is final; progressive: dropped earlier, too.",
        choices=("off", "final", "progressive"),
    )
    compact_after: int | None = setting(
        5, "compaction=progressive: allocations without a triplet before it is dropped; null: never.", at_least=1
    )
    variant: str = setting("exact", "Which AdaLoRA: see docs/algorithm.md.", choices=("exact", "original", "paper"))
    pruned_triplets: str = setting(
        "trainable",
        "Between allocations a pruned triplet is trainable (it may come back), frozen, or masked in the forward pass.",
        choices=("trainable", "frozen", "masked"),
    )
    svd_before_allocation: bool = setting(
        False, "Turn every ΔW into its singular value decomposition before each allocation."
    )
    magnitude_after_pruning: str = setting(
        "keep",
        "What an allocation does to DoRA's magnitude m: keep it; rescale it, so that m / ‖W + ΔW‖ stays; reset it to "
        "‖W + ΔW‖.",
        choices=("keep", "rescale", "reset"),
    )
    max_rank_factor: float = setting(
        1.0, "Methods that grow: triplets held per module, divided by the larger of init_rank and rank.", at_least=1
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
        """Whether ranks change while training."""
        return self.allocator is not None

    @property
    def initial_rank(self) -> int:
        """Triplets per module at the first step: init_rank where ranks adapt, else rank."""
        return self.init_rank if self.adaptive and self.init_rank is not None else self.rank

    @property
    def held_rank(self) -> int:
        """Triplets per module in memory: the initial rank, or max_rank_factor times as many where a method grows."""
        if not self.adaptive or self.pruned_triplets == "trainable":
            return self.initial_rank
        return math.ceil(self.max_rank_factor * max(self.initial_rank, self.rank))

    def takes(self, name: str) -> bool:
        """Whether the method's adapter asks for `name` (rank, targets, init, …)."""
        return self.adapter is not None and name in self.adapter.needs

    @property
    def has_magnitude(self) -> bool:
        """Whether the method's adapter trains DoRA's magnitudes."""
        from adarank.adapters import magnitude, parametrisation  # with torch, which most settings do not need

        found = parametrisation.lookup(self.adapter.settings.get("adapter")) if self.adapter is not None else None
        return found is not None and found.module is magnitude.Magnitude

    def without_effect(self) -> dict[str, str]:
        """{setting: why} of the settings that do nothing in this run. rank, targets and budget.unit, the terms of a
        comparison, are never refused for it, but do not enter the run's name either."""
        idle: dict[str, str] = {}
        if not self.adaptive:
            idle |= {"init_rank": "its rank is fixed", "max_rank_factor": "its rank is fixed"}
            idle |= dict.fromkeys(("compaction", "pruned_triplets", "magnitude_after_pruning"), "it prunes nothing")
            idle |= dict.fromkeys(("svd_before_allocation", "budget.unit"), "it allocates no budget")
            if self.penalty is None:
                idle["variant"] = "it has no controller"
        elif self.pruned_triplets == "trainable":
            idle["max_rank_factor"] = "pruned_triplets=trainable holds what it starts with"
        if self.adaptive and not self.has_magnitude:
            idle["magnitude_after_pruning"] = "its adapter has no magnitude"
        if self.score is None:
            idle["train.observe_scores"] = "it has no score"
        if not isinstance(self.train.eval_every, float):
            idle["train.eval_share"] = "train.eval_every is a number of steps, none of which is skipped"
        if self.compaction != "progressive":
            idle["compact_after"] = f"compaction={self.compaction} waits for no number of allocations"
        if self.ranks_from is None:
            idle["ranks_shuffle"] = "ranks_from is null, so that there are no ranks to permute"
        if self.ranks_shuffle == "none":
            idle["ranks_shuffle_seed"] = "ranks_shuffle=none draws nothing"
        if not self.low_rank:
            idle |= {"train.loraplus_lr_ratio": "it has no B", "ranks_from": "it has no ranks"}
        if not self.takes("targets"):
            idle["target_modules"] = "it has no adapter" if self.adapter is None else "its adapter has no targets"
        return idle

    def paths(self) -> dict[str, str]:
        """{setting: absolute path} of the local files and folders that the run reads, so that it can be opened from any
        other folder. A name that is chosen from a fixed list (task.name=cola) is no path."""
        given: dict[str, Any] = {} if self.ranks_from is None else {"ranks_from": self.ranks_from}
        for piece in filter(None, (self.task, self.model)):
            hints = typing.get_type_hints(piece.function)
            free = [key for key in ("path", "name") if typing.get_origin(hints.get(key)) is not typing.Literal]
            given |= {f"{piece.group}.{key}": piece.settings[key] for key in free if piece.settings.get(key)}
        places = {name: Path(value).expanduser().absolute() for name, value in given.items()}
        return {name: str(place) for name, place in places.items() if place.exists()}

    def record(self) -> dict[str, Any]:
        """The settings as config.yaml holds them: plain values, without those that only say whether to run."""
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in RUN_OR_NOT}
        return {
            name: value.record() if isinstance(value, Piece) else
            {f.name: getattr(value, f.name) for f in fields(value)} if isinstance(value, TrainConfig | BudgetConfig) else
            value
            for name, value in kept.items()
        }  # fmt: skip


def spec_of(record: Mapping[str, Any], paths: Mapping[str, str] | None = None) -> Spec:
    """The inverse of `Spec.record`. paths: what `Spec.paths` gave when the run began; those that still exist replace what
    was typed. A setting that the record lacks is newer than the run and has its identity default. Raises SettingError for
    a setting that this version does not know."""
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
            f"the run's config.yaml holds {prefix}{unknown[0]}, which this version of adarank does not know; it was "
            "made by another version"
        )
    newer = {f.name: f.metadata.get("identity", NEVER) for f in fields(cls) if f.name not in settings}
    return {**{name: value for name, value in newer.items() if value is not NEVER}, **settings}


def identity_default(f: "Field[Any]") -> Any:
    """The value at which a setting does not enter a run's name; NEVER where no value does."""
    return f.metadata.get("identity", f.default)


def as_steps(name: str, value: float, total: int, minimum: int = 0) -> int:
    """Whole steps, given as such (int) or as a fraction of `total` (a float from 0 up to 1) that is at least `minimum`."""
    if isinstance(value, bool) or not math.isfinite(value) or value < 0 or (isinstance(value, float) and value >= 1):
        raise SettingError(
            f"{name} must be a whole number of steps, or a fraction of train.steps from 0 up to 1 (got {value})"
        )
    return max(round(value * total), minimum) if isinstance(value, float) else value


def schema() -> type:
    """The tree of settings as Hydra checks it. Groups are untyped here: their schema is the signature of the function
    that their `_target_` names."""
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
    """Tell Hydra the schema, which conf/config.yaml names in its defaults list."""
    ConfigStore.instance().store(group="schema", name="run", node=schema(), package="_global_")
