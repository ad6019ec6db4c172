"""One cell of RankBench: a case at one setting and budget, its learning rate chosen, then run on every seed."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import adarank
from adarank.controller import RankController
from adarank.errors import SettingError
from adarank.harness.config.compose import spec_from
from adarank.harness.config.spec import Spec
from adarank.harness.models import Built
from adarank.harness.run.prepare import lr_factor, make_optimizer, prepare
from adarank.harness.run.ranks_from import RankMap
from experiments.rankbench.bases import module_count
from experiments.rankbench.problems import Problem, bound, draw, oracle_map, outputs
from experiments.rankbench.settings import Scale, Setting

UNIFORM, ORACLE = "lora", "oracle"  # LoRA with the same rank everywhere, and with the planted ranks
TIE = 1.1
TUNING_SEED = 100  # chooses learning rates and enters no result


@dataclass(frozen=True)
class Case:
    """What runs: a method with its overrides, at a mean rank. budgeted: whether it ends with that many triplets; moves:
    whether its final ranks can differ between modules."""

    name: str
    spec: Spec
    budgeted: bool

    @property
    def rank(self) -> int:
        return self.spec.rank


def make_case(name: str, setting: Setting, rank: int, steps: int) -> Case:
    """The case `name`, a method and overrides ("adalora, score=fisher"), with the ranks that the problem asks for.

    Every adaptive method may hold the largest planted rank in every module, and at least 1.5 times its final mean. One
    that keeps a triplet of every module has a mean rank of at least 2, so that there are some to place; one without a
    budget starts at the most it may hold. Raises SettingError where the method has no triplets.
    """
    method, *overrides = [word.strip() for word in name.split(",")]
    overrides = [f"method={UNIFORM if method == ORACLE else method}", *overrides, f"train.steps={steps}"]
    most = max(*setting.ranks, math.ceil(1.5 * rank))
    spec = spec_from([*overrides, f"rank={most}"])
    if spec.adapter is None or not spec.low_rank:
        raise SettingError("it has no adapter" if spec.adapter is None else "its adapter has no triplets")
    if spec.quantization is not None:
        raise SettingError("it differs from LoRA in its quantised base alone, and this base is not quantised")
    if spec.allocator is None:
        return Case(name, spec_from([*overrides, f"rank={rank}"]), True)
    if not getattr(spec.allocator(), "keeps_budget", True):
        return Case(name, spec, False)
    if spec.max_rank_factor > 1:
        rank = max(2, rank)
        most = max(most, math.ceil(1.5 * rank))
        return Case(name, spec_from([*overrides, f"rank={rank}", f"max_rank_factor={most / rank}"]), True)
    return Case(name, spec_from([*overrides, f"rank={rank}", f"init_rank={most}"]), True)


def mean_rank(setting: Setting, budget: float, modules: int | None = None) -> int:
    """The mean rank of `budget` times the planted number of triplets. Raises SettingError where it is not whole.

    modules: how many the base has, where that is known; a text model is loaded to count them."""
    modules = modules or module_count(setting.base)
    rank = budget * setting.planted / modules
    if rank < 1 or rank != int(rank):
        raise SettingError(
            f"--budget must give {setting.base}'s {modules} modules a whole mean rank from 1 up (got {budget:g} × "
            f"{setting.planted} triplets, a mean of {rank:g})"
        )
    return int(rank)


def batches(rows: Mapping[str, Tensor], size: int, seed: int) -> Iterator[dict[str, Tensor]]:
    """Batches of `size` rows without end, reshuffled in every epoch."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for numbers in torch.randperm(len(rows["labels"]), generator=generator).split(size):
            yield {key: values[numbers] for key, values in rows.items()}


def start(
    problem: Problem, spec: Spec, seed: int, lr: float, size: int, ranks: Mapping[str, int] | None = None
) -> tuple[nn.Module, RankController | None, Iterator[float]]:
    """A run that has not begun: its model, its controller, and an iterator that makes one step for each training loss
    it gives.

    ranks: fixed ranks from the first step, in place of the method's own."""
    config = replace(spec.train, lr=lr)
    spec = replace(spec, seed=seed, train=config, ranks_from=None if ranks is None else "given")
    rank_map = None if ranks is None else RankMap(spec.rank, spec.rank, dict(ranks))
    torch.manual_seed(seed)
    init_batches = batches(problem.splits["train"], size, seed + 2**31)
    built = Built(copy.deepcopy(problem.base.model), None, [])
    prepared = prepare(built, problem.base.targets, spec, torch.device("cpu"), init_batches, rank_map)
    model, controller = prepared.model, prepared.controller
    optimizer = make_optimizer(model, prepared.adapters, config)
    if controller is not None:
        controller.attach(optimizer)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_factor(config))
    trained = [p for group in optimizer.param_groups for p in group["params"]]

    def steps() -> Iterator[float]:
        for _, batch in zip(range(config.steps), batches(problem.splits["train"], size, seed), strict=False):
            loss = model(**batch).loss
            loss.backward()
            if controller is not None:
                controller.after_backward()
            nn.utils.clip_grad_norm_(trained, config.max_grad_norm or math.inf)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            yield loss.item()

    model.train()
    return model, controller, steps()


def train(
    problem: Problem, spec: Spec, seed: int, lr: float, size: int, ranks: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """One run: dev and test loss ÷ the untrained base's without noise, and {module: rank at the end}; `ranks` as in
    `start`."""
    model, _, losses = start(problem, spec, seed, lr, size, ranks)
    for _ in losses:
        continue
    model.eval()
    found = {
        split: F.mse_loss(outputs(model, problem.base.key, rows[problem.base.key]), rows["labels"]).item()
        / problem.untrained[split]
        for split, rows in problem.splits.items()
        if split != "train"
    }
    return {**found, "ranks": dict.fromkeys(problem.base.names, 0) | adarank.ranks(model)}


def tune(
    problem: Problem, spec: Spec, scale: Scale, ranks: Mapping[str, int] | None = None
) -> tuple[dict[str, float], dict[str, Any]]:
    """({rate: dev loss} on the tuning seed, the run of the chosen rate): the smallest whose loss is within TIE of the
    best, because a larger one that wins by less may diverge on another seed."""
    runs = {lr: train(problem, spec, TUNING_SEED, lr, scale.batch, ranks) for lr in sorted(scale.rates)}
    devs = {lr: run["dev"] if math.isfinite(run["dev"]) else math.inf for lr, run in runs.items()}
    chosen = next(lr for lr, dev in devs.items() if dev <= TIE * min(devs.values()))
    return {str(lr): run["dev"] for lr, run in runs.items()}, {"lr": chosen, **runs[chosen]}


def measure(
    setting: Setting, case: Case, seeds: Sequence[int], scale: Scale, known: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The cell of a case: rate and dev losses of its tuning, and for each seed the test loss ÷ the untrained base's and
    the final ranks; map_rate, map_dev and map_loss are LoRA's with the case's own final ranks, fixed from the first
    step, where those are not the same everywhere.

    known: the cell so far, whose seeds are kept and whose rates are not chosen again."""
    cell: dict[str, Any] = (
        copy.deepcopy(dict(known)) if known else {"rank": case.rank, "budgeted": case.budgeted, "seeds": {}}
    )
    lora = spec_from([f"method={UNIFORM}", f"rank={case.rank}", f"train.steps={case.spec.train.steps}"])

    def given(problem: Problem) -> dict[str, int] | None:
        return oracle_map(problem, case.rank) if case.name == ORACLE else None

    if "rate" not in cell:
        problem = draw(setting, TUNING_SEED)
        cell["dev"], best = tune(problem, case.spec, scale, given(problem))
        cell["rate"] = best["lr"]
        if case.name != ORACLE and uneven(best["ranks"]):
            cell["map_dev"], again = tune(problem, lora, scale, best["ranks"])
            cell["map_rate"] = again["lr"]
    for seed in seeds:
        if str(seed) in cell["seeds"]:
            continue
        problem = draw(setting, seed)
        run = train(problem, case.spec, seed, cell["rate"], scale.batch, given(problem))
        row = {"loss": run["test"], "ranks": list(run["ranks"].values())}
        if case.name != ORACLE and uneven(run["ranks"]):
            rate = cell.get("map_rate", cell["rate"])
            row["map_loss"] = train(problem, lora, seed, rate, scale.batch, run["ranks"])["test"]
        cell["seeds"][str(seed)] = row
    return cell


def uneven(ranks: Mapping[str, int]) -> bool:
    """Whether ranks differ between modules and some are left."""
    return len(set(ranks.values())) > 1


def facts(setting: Setting, ranks: Sequence[int], seeds: Sequence[int]) -> dict[str, Any]:
    """What is known of the truth: module names, every seed's planted ranks, and on the linear base, for every mean
    rank, the smallest possible loss of the best map and of uniform ranks (the same for all seeds)."""
    problems = {seed: draw(setting, seed) for seed in seeds}
    found: dict[str, Any] = {
        "modules": problems[seeds[0]].base.names,
        "planted": {str(seed): problem.ranks for seed, problem in problems.items()},
    }
    if setting.base == "linear":
        problem = problems[seeds[0]]
        even = {rank: dict.fromkeys(problem.base.names, rank) for rank in ranks}
        found["bounds"] = {str(r): [bound(problem, oracle_map(problem, r)), bound(problem, even[r])] for r in ranks}
    return found
