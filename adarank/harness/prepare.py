"""A built model made ready for its method: adapters, controller, optimiser, learning-rate curve."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import adarank
from adarank.adapters.inject import find_targets
from adarank.adapters.lowrank import LowRank
from adarank.controller import RankController
from adarank.errors import SettingError
from adarank.harness.models import Built
from adarank.harness.settings import locate, schedule_steps


@dataclass(frozen=True)
class Prepared:
    """model on its device; adapters {name: module} (empty in full fine-tuning); controller where the rank adapts."""

    model: nn.Module
    adapters: dict[str, LowRank]
    controller: RankController | None


def configured(node: Mapping[str, Any] | None, **supplied: Any) -> Any:
    """The function that `node["_target_"]` names, called with the node's settings and what the harness supplies."""
    if node is None:
        return None
    return locate(node["_target_"])(**{k: v for k, v in node.items() if k != "_target_"}, **supplied)


def initial_rank(settings: Mapping[str, Any]) -> int:
    """Triplets per module at creation: rank, or for adaptive methods init_rank, by default ceil(1.5·rank)."""
    if settings["allocator"] is None:
        return int(settings["rank"])
    return int(settings["init_rank"] or math.ceil(1.5 * settings["rank"]))


def prepare(built: Built, targets: str | list[str], settings: Mapping[str, Any], device: torch.device) -> Prepared:
    """Adapt `built.model` as the settings say. Raises SettingError before anything is trained or written."""
    model = built.model
    if settings["adapter"] is None:
        return Prepared(model.to(device), {}, None)
    rank = initial_rank(settings)
    _check_rank(model, targets, rank, "rank" if settings["allocator"] is None else "init_rank")
    init = configured(settings["init"]) or "default"
    adapters = configured(settings["adapter"], model=model, rank=rank, targets=targets, init=init, train=built.head)
    model.to(device)
    if settings["allocator"] is None:
        return Prepared(model, adapters, None)
    schedule = configured(
        {**settings["schedule"], **schedule_steps(settings)},
        initial=rank * len(adapters),
        final=settings["rank"] * len(adapters),
        total=settings["train"]["steps"],
    )
    controller = adarank.RankController(
        adapters,
        score=configured(settings["score"]),
        allocator=configured(settings["allocator"]),
        schedule=schedule,
        penalty=configured(settings["penalty"]),
        mode=settings["mode"],
        compaction=settings["compaction"],
        patience=settings["patience"],
        seed=settings["seed"],
    )
    return Prepared(model, adapters, controller)


def _check_rank(model: nn.Module, targets: str | list[str], rank: int, name: str) -> None:
    modules: dict[str, Any] = {n: model.get_submodule(n) for n in find_targets(model, targets)}
    smallest = min(modules, key=lambda n: min(modules[n].weight.shape))
    limit = min(modules[smallest].weight.shape)
    if rank > limit:
        raise SettingError(f"{name}={rank} is larger than the smaller side of {smallest}; valid: from 1 to {limit}")


def describe_schedule(controller: RankController) -> str:
    """The effective schedule in one line: the budget at five steps and the number of allocations."""
    schedule, modules = controller.schedule, len(controller.bank.names)
    last = schedule.total - 1
    steps = sorted({round(last * part / 4) for part in range(5)})
    budgets = ", ".join(f"{schedule.budget(t)} at step {t}" for t in steps)
    count = len(schedule.allocations())
    return f"budget in triplets over {modules} modules: {budgets}; {count} allocation{'s' * (count != 1)}"


def make_optimizer(
    model: nn.Module, adapters: Mapping[str, LowRank], lr: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW over everything that trains. Weights decay; biases and norms (vectors outside the adapters) do not."""
    factors = {id(p) for a in adapters.values() for p in a.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim > 1 or id(p) in factors]
    rest = [p for p in trained if not (p.ndim > 1 or id(p) in factors)]
    assert len(decayed) + len(rest) == len(trained), "every trained parameter belongs to exactly one group"
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    device = trained[0].device.type
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, fused=device in ("cpu", "cuda"))


def lr_factor(decay: str, warmup: int, total: int) -> Callable[[int], float]:
    """Step -> factor on the learning rate: linear warm-up over `warmup` steps, then linear, cosine or no decay to 0 at `total`."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        left = (total - step) / (total - warmup)
        return {"linear": left, "cosine": 0.5 * (1 + math.cos(math.pi * (1 - left))), "constant": 1.0}[decay]

    return factor
