"""Prepares a built model for its method: adapters, controller, optimiser and learning-rate curve."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

import adarank
from adarank.adapters.layers import Wrapper, layer_of
from adarank.adapters.lowrank import LowRank
from adarank.controller import RankController
from adarank.errors import SettingError
from adarank.harness.config.spec import Spec, TrainConfig
from adarank.harness.data.packing import Way
from adarank.harness.models import DTYPES, Built, kept_in_fp32
from adarank.harness.run.ranks_from import RankMap, fixed_ranks
from adarank.schedules import Schedule
from adarank.targets import find_targets, sides


@dataclass(frozen=True)
class Prepared:
    """model: on its device; adapters: {name: module} (empty with full fine-tuning); controller: None unless the method
    needs one; head: the names of the model's new modules, which are trained whole; unadapted: target modules to which
    ranks_from gives rank 0; packing: how the rows of a forward pass are packed, or None if they are padded."""

    model: nn.Module
    adapters: dict[str, LowRank]
    controller: RankController | None
    head: tuple[str, ...] = ()
    unadapted: tuple[str, ...] = ()
    packing: Way | None = None


def prepare(
    built: Built,
    targets: str | list[str] | None,
    spec: Spec,
    device: torch.device,
    batches: Iterable[Mapping[str, Tensor]] | None = None,
    rank_map: RankMap | None = None,
) -> Prepared:
    """Adapt `built.model` according to the settings. targets: None for methods that take none; batches: model inputs
    with labels on `device`, for inits that use data; rank_map: the ranks of ranks_from. Raises SettingError before
    anything is trained or written."""
    model, head = built.model, tuple(built.head)
    if spec.train.head_lr is not None and not head:
        raise SettingError(
            f"train.head_lr must be null with {type(model).__name__}, which gets no new head (got {spec.train.head_lr})"
        )
    if spec.adapter is None:
        store(model, built.dtype)
        return Prepared(model.to(device), {}, None, head)
    offered = {"model": model, "rank": spec.rank, "targets": targets, "train": built.head, "batches": batches}
    unadapted: tuple[str, ...] = ()
    if spec.low_rank:
        assert targets is not None, "an adapter with triplets takes targets"
        init = None if spec.init is None else spec.init()
        if init is not None and init.measure is not None:
            model.to(device)  # inits measure data on the device that will train
        limits = {name: min(sides(model, name)) for name in find_targets(model, targets, built.head)}
        ranks = _ranks(limits, spec)
        if rank_map is not None:
            if init is not None and init.ranks is not None:
                raise SettingError(
                    f"init={init.name} moves ranks between modules, but ranks_from fixes them; choose another init"
                )
            final = fixed_ranks(rank_map, limits, spec.ranks_shuffle, spec.ranks_shuffle_seed)
            ranks = {name: rank for name, rank in final.items() if rank}
            unadapted = tuple(name for name, rank in final.items() if not rank)
            offered["targets"] = list(ranks)
        offered |= {"rank": ranks, "init": init or "default"}
        own_scale = init is not None and init.own_scale
    made = spec.adapter(**offered)
    adapters = {name: module for name, module in made.items() if isinstance(module, LowRank)}
    store(model, built.dtype)
    model.to(device)
    if spec.low_rank and not own_scale:
        _keep_scale(adapters, spec)
    if not spec.adaptive and spec.penalty is None:
        return Prepared(model, adapters, None, head, unadapted)
    controller = adarank.RankController(
        adapters,
        score=None if spec.score is None else spec.score(seed=spec.seed),
        allocator=None if spec.allocator is None else spec.allocator(seed=spec.seed),
        schedule=_schedule(adapters, spec),
        penalty=None if spec.penalty is None else spec.penalty(),
        variant=spec.variant,
        unit=spec.budget.unit,
        pruned_triplets=spec.pruned_triplets,
        svd_before_allocation=spec.svd_before_allocation,
        magnitude_after_pruning=spec.magnitude_after_pruning,
        compaction=spec.compaction,
        compact_after=spec.compact_after,
        seed=spec.seed,
    )
    controller.prepare_adapters()  # so that the scale and the initial ranks can be reported before training
    return Prepared(model, adapters, controller, head, unadapted)


def store(model: Any, dtype: str) -> None:
    """Store trained parameters in at least fp32, and frozen ones in `dtype`, a key of `adarank.harness.models.DTYPES`.

    Frozen parameters do not change if they are quantised, if Transformers keeps their modules in fp32, or if they share
    a module other than a linear, a convolution or an embedding with trained ones: a LayerNorm cannot compute with a
    bf16 weight and an fp32 bias.
    """
    target = getattr(torch, DTYPES[dtype])
    in_fp32 = kept_in_fp32(model)
    for name, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if p.is_floating_point()]
        mixed = any(p.requires_grad for p in own) and layer_of(module) is None and not isinstance(module, Wrapper)
        whole = mixed or not in_fp32.isdisjoint(name.split("."))
        for parameter in own:
            kept = torch.promote_types(parameter.dtype, torch.float32)
            parameter.data = parameter.data.to(kept if whole or parameter.requires_grad else target)


def _schedule(adapters: Mapping[str, LowRank], spec: Spec) -> Schedule | None:
    """The configured schedule from the initial to the final budget, in budget.unit."""
    if not spec.adaptive or spec.schedule is None:
        return None
    in_parameters = spec.budget.unit == "parameters"
    costs = [a.in_features + a.out_features + 1 if in_parameters else 1 for a in adapters.values()]
    held = sum(a.rank * c for a, c in zip(adapters.values(), costs, strict=True))
    starts = spec.initial_rank * sum(costs)
    return spec.schedule(  # type: ignore[no-any-return]
        initial=held if spec.pruned_triplets == "trainable" else min(starts, held),
        final=min(spec.rank * sum(costs), held),
        total=spec.train.steps,
    )


def _ranks(limits: Mapping[str, int], spec: Spec) -> int | dict[str, int]:
    """The rank of every module at creation, which is at most the module's smaller side, given by `limits`."""
    smallest = min(limits, key=lambda name: limits[name])
    if spec.initial_rank > limits[smallest]:
        raise SettingError(
            f"{'init_rank' if spec.adaptive else 'rank'} must be a whole number from 1 to {limits[smallest]}, the "
            f"smaller side of {smallest} (got {spec.initial_rank})"
        )
    held = spec.held_rank
    return held if held <= limits[smallest] else {name: min(held, limit) for name, limit in limits.items()}


def _keep_scale(adapters: Mapping[str, LowRank], spec: Spec) -> None:
    """Set s = α / r (rsLoRA: α / √r), where r is the larger of the initial and final rank, however many triplets a
    growing method holds in memory. With ranks_from, these are the source run's mean ranks, not each module's rank."""
    alpha = (spec.adapter.settings if spec.adapter else {}).get("alpha")
    mapped = spec.ranks_from is not None
    if alpha is None or (spec.held_rank == spec.initial_rank and not mapped):
        return
    first = spec.init_rank if mapped and spec.init_rank is not None else spec.initial_rank
    reference = max(first, spec.rank)
    rslora = spec.adapter is not None and spec.adapter.settings.get("rslora")
    for adapter in adapters.values():
        adapter.scale = alpha / (math.sqrt(reference) if rslora else reference)


def describe_schedule(controller: RankController) -> str:
    """One line about the effective schedule: the budget (if any) at five steps and the number of allocations."""
    schedule, modules = controller.schedule, len(controller.bank.names)
    count = len(schedule.allocations())
    if not getattr(controller.allocator, "keeps_budget", True):
        return f"no budget: training decides the ranks of {modules} modules; {count} allocation{'s' * (count != 1)}"
    last = schedule.total - 1
    steps = sorted({round(last * part / 4) for part in range(5)})
    budgets = ", ".join(f"{schedule.budget(t)} at step {t}" for t in steps)
    return f"budget in {controller.unit} over {modules} modules: {budgets}; {count} allocation{'s' * (count != 1)}"


def check_optimizer(name: str, device: torch.device) -> None:
    """Raise SettingError if the optimiser is one of bitsandbytes', which is not installed or does not run on
    `device`."""
    if name == "adamw":
        return
    runs_on = ("cuda",) if name == "paged_adamw_8bit" else ("cuda", "cpu")
    if device.type not in runs_on:
        others = "adamw or adamw_8bit" if device.type == "cpu" else "adamw"
        raise SettingError(
            f"train.optimizer must be {others} on {device.type} (got {name}, which only runs on {' or '.join(runs_on)})"
        )
    if find_spec("bitsandbytes") is None:
        raise SettingError(f"train.optimizer={name}: bitsandbytes is not installed; pip install 'adarank[quant]'")


def enable_gradient_checkpointing(model: Any) -> None:
    """Let the model's blocks recompute their activations in the backward pass. Raises SettingError if they cannot."""
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise SettingError(
            f"train.gradient_checkpointing must be false with {type(model).__name__}, which does not support it (got "
            "true)"
        )
    newer = getattr(model, "activation_checkpointing_enable", None)  # its name in newer Transformers
    (newer or model.gradient_checkpointing_enable)({"use_reentrant": False})


def make_optimizer(
    model: nn.Module, adapters: Mapping[str, LowRank], config: TrainConfig, head: Iterable[str] = ()
) -> torch.optim.Optimizer:
    """The AdamW of `config.optimizer` for all trained parameters. Weights decay; biases and norms (vectors outside the
    adapters) do not. config.loraplus_lr_ratio: LoRA+ (arXiv 2402.12354), the learning rate of every P (B) divided by
    config.lr. head: the names of the modules that train at config.head_lr, unless it is None.
    """
    factors = {id(p) for a in adapters.values() for p in (a.Q, a.lam, a.P)}
    rates = {id(a.P): config.lr * config.loraplus_lr_ratio for a in adapters.values()}
    if config.head_lr is not None:
        rates |= {id(p): config.head_lr for name in head for p in model.get_submodule(name).parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    grouped: dict[tuple[bool, float], list[nn.Parameter]] = {
        (decays, rate): [] for decays in (True, False) for rate in (config.lr, *rates.values())
    }
    for parameter in trained:
        decays = parameter.ndim > 1 or id(parameter) in factors
        grouped[decays, rates.get(id(parameter), config.lr)].append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": parameters, "weight_decay": config.weight_decay if decays else 0.0, "lr": rate}
        for (decays, rate), parameters in grouped.items()
        if parameters
    ]
    if config.optimizer != "adamw":
        from bitsandbytes import optim

        optimizers = {"adamw_8bit": optim.AdamW8bit, "paged_adamw_8bit": optim.PagedAdamW8bit}
        return optimizers[config.optimizer](groups, lr=config.lr)
    return torch.optim.AdamW(groups, lr=config.lr, fused=trained[0].device.type in ("cpu", "cuda"))


def lr_factor(config: TrainConfig) -> Callable[[int], float]:
    """A function from the step to the factor on the learning rate: linear warm-up, then linear or cosine decay to 0 at
    the last step, or no decay."""
    warmup, total = config.warmup_steps, config.steps

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        left = (total - step) / (total - warmup)
        return {"linear": left, "cosine": 0.5 * (1 + math.cos(math.pi * (1 - left))), "constant": 1.0}[
            config.lr_scheduler
        ]

    return factor
