"""A built model made ready for its method: adapters, controller, optimiser, learning-rate curve."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

import adarank
from adarank.adapters.inject import find_targets, sides
from adarank.adapters.lowrank import LowRank
from adarank.controller import RankController
from adarank.errors import SettingError
from adarank.harness.models import Built
from adarank.harness.settings import accepts, adapts, fixes_ranks, is_low_rank, locate, schedule_steps
from adarank.schedules import Schedule


@dataclass(frozen=True)
class Prepared:
    """model on its device; adapters {name: module} (empty in full fine-tuning); controller where the rank adapts;
    bare: target modules that a rank map leaves without an adapter."""

    model: nn.Module
    adapters: dict[str, LowRank]
    controller: RankController | None
    bare: tuple[str, ...] = ()


def configured(node: Mapping[str, Any] | None, **supplied: Any) -> Any:
    """The function that `node["_target_"]` names, called with the node's settings and what the harness supplies."""
    if node is None:
        return None
    return locate(node["_target_"])(**{k: v for k, v in node.items() if k != "_target_"}, **supplied)


def initial_rank(settings: Mapping[str, Any]) -> int:
    """Triplets per module at the start: rank, or for adaptive methods init_rank, by default ceil(1.5·rank)."""
    if not adapts(settings):
        return int(settings["rank"])
    return int(settings["init_rank"] or math.ceil(1.5 * settings["rank"]))


def held_rank(settings: Mapping[str, Any]) -> int:
    """Triplets per module in memory: the initial rank, or `capacity` times as many where a method grows."""
    if not adapts(settings) or settings["pruned"] == "learning":
        return initial_rank(settings)
    return math.ceil(settings["capacity"] * max(initial_rank(settings), settings["rank"]))


def prepare(
    built: Built,
    targets: str | list[str],
    settings: Mapping[str, Any],
    device: torch.device,
    batches: Iterable[Mapping[str, Tensor]] | None = None,
) -> Prepared:
    """Adapt `built.model` as the settings say. batches: for inits that look at data, model inputs with labels, on
    `device`. Raises SettingError before anything is trained or written."""
    model = built.model
    if settings["adapter"] is None:
        return Prepared(model.to(device), {}, None)
    offered = {"rank": settings["rank"], "targets": targets, "train": built.head}
    bare: tuple[str, ...] = ()
    if is_low_rank(settings):
        init = configured(settings["init"])
        if init is not None and init.measure is not None:
            model.to(device)  # what is learned from data is learned where training will be
        offered |= {"rank": _ranks(model, targets, settings), "init": init or "default", "batches": batches}
        if fixes_ranks(settings):
            ranks, bare = _mapped(model, targets, settings, init)
            offered |= {"rank": ranks, "targets": list(ranks)}
    taken = {name: value for name, value in offered.items() if accepts(settings["adapter"], name)}
    if not built.head and locate(settings["adapter"]["_target_"]) is adarank.head:
        raise SettingError(
            f"method={settings['method']} trains the head alone, and {type(model).__name__} has none of its own for this "
            "task; valid: another method"
        )
    made = configured(settings["adapter"], model=model, **taken)
    adapters = {name: module for name, module in made.items() if isinstance(module, LowRank)}
    model.to(device)
    if is_low_rank(settings):
        _keep_scale(adapters, settings)
    if not adapts(settings) and settings["penalty"] is None:
        return Prepared(model, adapters, None, bare)
    seeded = {"seed": settings["seed"]} if accepts(settings["score"], "seed") else {}
    controller = adarank.RankController(
        adapters,
        score=configured(settings["score"], **seeded),
        allocator=_allocator(adapters, settings),
        schedule=_schedule(adapters, settings),
        penalty=configured(settings["penalty"]),
        mode=settings["mode"],
        unit=settings["budget"]["unit"],
        pruned=settings["pruned"],
        basis=settings["basis"],
        compaction=settings["compaction"],
        patience=settings["patience"],
        seed=settings["seed"],
    )
    return Prepared(model, adapters, controller, bare)


def _allocator(adapters: Mapping[str, LowRank], settings: Mapping[str, Any]) -> Any:
    """The configured allocator, told the modules' names where it asks for them."""
    if not adapts(settings):
        return None
    supplied = {"names": list(adapters)} if accepts(settings["allocator"], "names") else {}
    return configured(settings["allocator"], **supplied)


def _mapped(
    model: nn.Module, targets: str | list[str], settings: Mapping[str, Any], init: Any
) -> tuple[dict[str, int], tuple[str, ...]]:
    """By the map: the ranks of the modules that get an adapter, and the names of those that get none."""
    if init is not None and init.ranks is not None:
        raise SettingError(
            f"init={init.name} moves ranks between modules, which allocator=map has fixed; choose another"
        )
    limits = {name: min(sides(model, name)) for name in find_targets(model, targets)}
    ranks: dict[str, int] = configured(settings["allocator"], limits=limits)
    return {n: r for n, r in ranks.items() if r}, tuple(n for n, r in ranks.items() if not r)


def _schedule(adapters: Mapping[str, LowRank], settings: Mapping[str, Any]) -> Schedule | None:
    """The configured schedule between the initial and the final budget, in budget.unit."""
    if not adapts(settings):
        return None
    in_parameters = settings["budget"]["unit"] == "parameters"
    costs = [a.in_features + a.out_features + 1 if in_parameters else 1 for a in adapters.values()]
    held = sum(a.rank * c for a, c in zip(adapters.values(), costs, strict=True))
    starts = initial_rank(settings) * sum(costs)
    return configured(  # type: ignore[no-any-return]
        {**settings["schedule"], **schedule_steps(settings)},
        initial=held if settings["pruned"] == "learning" else min(starts, held),
        final=min(settings["rank"] * sum(costs), held),
        total=settings["train"]["steps"],
    )


def _ranks(model: nn.Module, targets: str | list[str], settings: Mapping[str, Any]) -> int | dict[str, int]:
    """The rank of every module at creation; a module holds no more than its smaller side."""
    initial, held = initial_rank(settings), held_rank(settings)
    limits = {name: min(sides(model, name)) for name in find_targets(model, targets)}
    smallest = min(limits, key=lambda name: limits[name])
    name, least = ("init_rank" if adapts(settings) else "rank", initial)
    if least > limits[smallest]:
        raise SettingError(
            f"{name}={least} is larger than the smaller side of {smallest}; valid: from 1 to {limits[smallest]}"
        )
    return held if held <= limits[smallest] else {n: min(held, limit) for n, limit in limits.items()}


def _keep_scale(adapters: Mapping[str, LowRank], settings: Mapping[str, Any]) -> None:
    """s = α / r with the larger of the initial and final rank, not with what a growing method holds in memory, nor with
    what a map gives each module (its run's ranks count)."""
    alpha = settings["adapter"].get("alpha")
    mapped = fixes_ranks(settings)
    if alpha is None or (held_rank(settings) == initial_rank(settings) and not mapped):
        return
    reference = max(settings["init_rank"] if mapped else initial_rank(settings), settings["rank"])
    for adapter in adapters.values():
        adapter.scale = alpha / (math.sqrt(reference) if settings["adapter"].get("rslora") else reference)


def describe_schedule(controller: RankController) -> str:
    """The effective schedule in one line: the budget at five steps and the number of allocations."""
    schedule, modules = controller.schedule, len(controller.bank.names)
    last = schedule.total - 1
    steps = sorted({round(last * part / 4) for part in range(5)})
    budgets = ", ".join(f"{schedule.budget(t)} at step {t}" for t in steps)
    count = len(schedule.allocations())
    return f"budget in {controller.unit} over {modules} modules: {budgets}; {count} allocation{'s' * (count != 1)}"


def check_optimizer(name: str, device: torch.device) -> None:
    """Raise SettingError for one of bitsandbytes' optimisers where it is not installed or does not run on `device`."""
    if name == "adamw":
        return
    runs_on = ("cuda",) if name == "paged_adamw_8bit" else ("cuda", "cpu")
    if device.type not in runs_on:
        others = "adamw, adamw_8bit" if device.type == "cpu" else "adamw"
        raise SettingError(
            f"train.optimizer={name} runs on {' or '.join(runs_on)} only, this is {device.type}; valid here: {others}"
        )
    if find_spec("bitsandbytes") is None:
        raise SettingError(f"train.optimizer={name}: bitsandbytes is not installed; pip install 'adarank[quant]'")


def checkpoint_activations(model: Any) -> None:
    """Let the model's blocks compute their activations again in the backward pass. Raises SettingError where it cannot."""
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise SettingError(
            f"train.checkpoint_activations=true: {type(model).__name__} does not support it; valid: false, or another model"
        )
    newer = getattr(model, "activation_checkpointing_enable", None)  # its name in newer Transformers
    (newer or model.gradient_checkpointing_enable)({"use_reentrant": False})


def make_optimizer(
    model: nn.Module,
    adapters: Mapping[str, LowRank],
    lr: float,
    weight_decay: float,
    lr_ratio: float = 1.0,
    name: str = "adamw",
) -> torch.optim.Optimizer:
    """AdamW over everything that trains. Weights decay; biases and norms (vectors outside the adapters) do not.

    lr_ratio: LoRA+ (arXiv 2402.12354), the learning rate of every P (B) ÷ lr. name: "adamw", or bitsandbytes' "adamw_8bit" or
    "paged_adamw_8bit", which keep their averages in 8 bits.
    """
    factors = {id(p) for a in adapters.values() for p in (a.Q, a.lam, a.P)}
    faster = {id(a.P) for a in adapters.values()} if lr_ratio != 1.0 else set()
    trained = [p for p in model.parameters() if p.requires_grad]
    decays = {id(p): p.ndim > 1 or id(p) in factors for p in trained}
    groups: list[dict[str, Any]] = [
        {
            "params": [p for p in trained if decays[id(p)] == decay and (id(p) in faster) == fast],
            "weight_decay": weight_decay if decay else 0.0,
            "lr": lr * lr_ratio if fast else lr,
        }
        for decay in (True, False)
        for fast in (False, True)
    ]
    assert sum(len(g["params"]) for g in groups) == len(trained), "every trained parameter belongs to exactly one group"
    groups = [g for g in groups if g["params"]]
    if name != "adamw":
        from bitsandbytes import optim

        return {"adamw_8bit": optim.AdamW8bit, "paged_adamw_8bit": optim.PagedAdamW8bit}[name](groups, lr=lr)
    return torch.optim.AdamW(groups, lr=lr, fused=trained[0].device.type in ("cpu", "cuda"))


def lr_factor(decay: str, warmup: int, total: int) -> Callable[[int], float]:
    """Step -> factor on the learning rate: linear warm-up over `warmup` steps, then linear, cosine or no decay to 0 at `total`."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        left = (total - step) / (total - warmup)
        return {"linear": left, "cosine": 0.5 * (1 + math.cos(math.pi * (1 - left))), "constant": 1.0}[decay]

    return factor
