"""One cell of RankBench: a case at one setting and budget, its learning rate chosen, then run on every seed."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
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
from experiments.rankbench.bases import module_count, smallest_side
from experiments.rankbench.problems import Problem, bound, draw, oracle_map, outputs
from experiments.rankbench.settings import Scale, Setting

UNIFORM, ORACLE = "lora", "oracle"  # LoRA with the same rank everywhere, and with the planted ranks
START = 12  # times the requested mean rank: the most triplets an adaptive method may hold in a module
TUNING_SEED = 100  # the first of those that choose learning rates and enter no result
EXTENSIONS = 2  # rates by which a grid may grow at either end


@dataclass(frozen=True)
class Case:
    """A method with its overrides, at a mean rank. budgeted: whether it ends at that mean rank."""

    name: str
    spec: Spec
    budgeted: bool

    @property
    def rank(self) -> int:
        return self.spec.rank


def make_case(name: str, setting: Setting, rank: int, steps: int) -> Case:
    """The case `name`, a method and overrides ("adalora, score=fisher"), at a mean rank.

    An adaptive method may hold up to START times the mean rank in every module, as far as its weight allows, unless the
    overrides name an init_rank; this does not depend on the planted ranks. A growing method keeps a triplet in every
    module, so its mean rank is at least 2; one without a budget starts at the most it may hold. Raises SettingError if
    the method has no triplets or quantises its base.
    """
    method, *overrides = [word.strip() for word in name.split(",")]
    overrides = [f"method={UNIFORM if method == ORACLE else method}", *overrides, f"train.steps={steps}"]
    most = min(smallest_side(setting.base), START * rank)
    spec = spec_from([*overrides, f"rank={rank}"])
    if spec.adapter is None or not spec.low_rank:
        raise SettingError("it has no adapter" if spec.adapter is None else "its adapter has no triplets")
    if spec.quantization is not None:
        raise SettingError("it differs from LoRA in its quantised base alone, and this base is not quantised")
    if spec.allocator is None:
        return Case(name, spec, True)
    if not getattr(spec.allocator(), "keeps_budget", True):
        return Case(name, spec_from([*overrides, f"rank={most}"]), False)
    if spec.max_rank_factor > 1:
        rank = max(2, rank)
        return Case(name, spec_from([*overrides, f"rank={rank}", f"max_rank_factor={most / rank}"]), True)
    return Case(name, spec_from([f"init_rank={most}", *overrides, f"rank={rank}"]), True)


def mean_rank(setting: Setting, budget: float, modules: int | None = None) -> int:
    """The mean rank of `budget` times the planted number of triplets. Raises SettingError if it is not whole.

    modules: how many the base has; if that is not known, a text model is loaded to count them."""
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
    """A run before its first step: its model, its controller, and an iterator that makes a step and yields its
    training loss.

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
    """One run: dev and test loss, without noise, ÷ the untrained base's, and {module: rank at the end}; `ranks` as in
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


Trial = Callable[[float, int], dict[str, Any]]  # (rate, tuning seed) -> the run


def tune(scale: Scale, trial: Trial) -> tuple[float, dict[str, list[float]], list[dict[str, Any]]]:
    """(the rate with the lowest geometric mean of dev losses over the tuning seeds, {rate: these losses}, the runs at
    this rate). While the best rate is the lowest or the highest, the grid grows by one rate there, EXTENSIONS times at
    most. A rate that diverges on a seed is not chosen."""
    rates = sorted(scale.rates)
    runs: dict[float, list[dict[str, Any]]] = {}
    for _ in range(EXTENSIONS + 1):
        for lr in rates:
            if lr not in runs:
                runs[lr] = [trial(lr, TUNING_SEED + i) for i in range(scale.tuning)]
        best = min(rates, key=lambda lr: _geometric_mean(run["dev"] for run in runs[lr]))
        if best not in (rates[0], rates[-1]) or len(rates) == 1:
            break
        ratio = rates[1] / rates[0]
        rates = [best / ratio, *rates] if best == rates[0] else [*rates, best * ratio]
    return best, {f"{lr:.6g}": [run["dev"] for run in runs[lr]] for lr in sorted(runs)}, runs[best]


def _geometric_mean(losses: Iterable[float]) -> float:
    values = list(losses)
    if not all(map(math.isfinite, values)):
        return math.inf
    return math.exp(fmean(math.log(max(value, 1e-300)) for value in values))


def measure(
    setting: Setting, rank: int, case: Case, seeds: Sequence[int], scale: Scale, known: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The cell of a case: rate and dev losses of its tuning, and for each seed the test loss ÷ the untrained base's and
    the final ranks; map_rate, map_dev and map_loss are LoRA's with the case's own final ranks, fixed from the first
    step, for a method whose ranks differ from uniform LoRA's.

    rank: the requested mean rank, that of the uniform LoRA with which a case without a budget is compared; known: the
    cell so far, whose seeds are kept and whose rates are not chosen again."""
    cell: dict[str, Any] = (
        copy.deepcopy(dict(known)) if known else {"rank": case.rank, "budgeted": case.budgeted, "seeds": {}}
    )
    lora = spec_from([f"method={UNIFORM}", f"rank={case.rank}", f"train.steps={case.spec.train.steps}"])
    rank = case.rank if case.budgeted else rank

    def given(problem: Problem) -> dict[str, int] | None:
        return oracle_map(problem, case.rank) if case.name == ORACLE else None

    drawn = partial(draw, setting)

    def trial(lr: float, seed: int) -> dict[str, Any]:
        return train(drawn(seed), case.spec, seed, lr, scale.batch, given(drawn(seed)))

    def has_map(ranks: Mapping[str, int]) -> bool:
        return case.name != ORACLE and any(ranks.values()) and set(ranks.values()) != {rank}

    if "rate" not in cell:
        cell["rate"], cell["dev"], runs = tune(scale, trial)
        maps = {TUNING_SEED + i: run["ranks"] for i, run in enumerate(runs)}
        if any(map(has_map, maps.values())):
            cell["map_rate"], cell["map_dev"], _ = tune(
                scale, lambda lr, seed: train(drawn(seed), lora, seed, lr, scale.batch, maps[seed])
            )
    for seed in seeds:
        if str(seed) in cell["seeds"]:
            continue
        run = trial(cell["rate"], seed)
        row = {"loss": run["test"], "ranks": list(run["ranks"].values())}
        if "map_rate" in cell and has_map(run["ranks"]):
            row["map_loss"] = train(drawn(seed), lora, seed, cell["map_rate"], scale.batch, run["ranks"])["test"]
        cell["seeds"][str(seed)] = row
    return cell


def facts(setting: Setting, ranks: Sequence[int], seeds: Sequence[int]) -> dict[str, Any]:
    """The known truth: module names, every seed's planted ranks, and on the linear base, for every mean
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
