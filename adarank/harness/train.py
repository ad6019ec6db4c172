"""The training loop: one for every method."""

import itertools
import math
import statistics
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from adarank.allocation import Allocation
from adarank.controller import RankController
from adarank.errors import RunFailed
from adarank.harness import parallel
from adarank.harness.checkpoint import Progress, Saver, trained_state
from adarank.harness.data import Encoded, collate, evaluation_order, training_order
from adarank.harness.distributed import is_main, rank, world
from adarank.harness.measure import clock, peak_mib, reset_peak
from adarank.harness.prepare import Prepared, lr_factor, make_optimizer
from adarank.harness.tasks import metrics
from adarank.harness.tracking import Log


class Diverged(RunFailed):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class Plan:
    """Numbers of the loop. lr: peak; optimizer: see `make_optimizer`; lr_ratio: that of every P ÷ lr (LoRA+); steps,
    warmup, eval_every, log_every: optimiser steps; batch_size: rows of one forward pass; accumulation: forward passes of
    one step; clip: largest gradient norm, 0 for none; precision: "fp32" or "bf16" (autocast); metrics: names, the first
    chooses the best checkpoint."""

    lr: float
    lr_ratio: float
    steps: int
    batch_size: int
    accumulation: int
    warmup: int
    decay: str
    weight_decay: float
    clip: float
    eval_every: int
    log_every: int
    precision: str
    seed: int
    metrics: tuple[str, ...]
    optimizer: str = "adamw"
    checkpoint_activations: bool = False
    shard: str = "none"


@dataclass
class Outcome:
    """What a run found: the metric on dev, best and last, and on test at the best checkpoint and at the last step; times;
    peak memory."""

    best: float
    best_step: int
    last: float
    test: float | None
    test_last: float | None
    train_s: float
    eval_s: float
    step_ms: float
    peak_mib: float | None


def task_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy for classes (logits [n, classes]), mean squared error for float targets (logits [n, 1])."""
    if labels.is_floating_point():
        return F.mse_loss(logits.squeeze(-1).float(), labels.float())
    return F.cross_entropy(logits.float(), labels)


def autocast(precision: str, device: torch.device) -> Any:
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


@torch.no_grad()
def evaluate(model: nn.Module, encoded: Encoded, plan: Plan, device: torch.device) -> dict[str, float]:
    """The task's metrics and the loss over a whole split. Pruned triplets do not count (λ ⊙ mask).

    Rank i of n takes batches i, i + n, …, so that every batch is the one that a single process would see.
    """
    model.eval()
    order = evaluation_order(encoded, 2 * plan.batch_size)
    logits: list[Tensor] = []
    for first in range(0, len(order), world()):
        mine = min(first + rank(), len(order) - 1)  # one too many does no harm: sharded weights need every rank
        inputs, _ = collate(encoded, order[mine], device)
        with autocast(plan.precision, device):
            found = model(**inputs).logits.float()
        logits += parallel.in_order(found, [len(rows) for rows in order[first : first + world()]])
    model.train()
    rows = np.concatenate(order)
    ordered, labels = torch.cat(logits).cpu(), encoded.label[torch.from_numpy(rows)]
    values = metrics.compute(plan.metrics, ordered.numpy(), labels.numpy())
    return {**values, "loss": task_loss(ordered, labels).item()}


def train(
    prepared: Prepared,
    splits: Mapping[str, Encoded],
    plan: Plan,
    log: Log,
    beat: Callable[[int], None],
    keep: Callable[[nn.Module], None],
    saver: Saver | None = None,
) -> Outcome:
    """Train, evaluating on dev as planned, and end with test at the best dev checkpoint.

    splits: "train", "dev" and, where there is one, "test". beat(step) is called often; keep(model) once, with the
    best checkpoint's weights in the model. For an adaptive method only checkpoints at the final budget may be best.
    Under torchrun every rank runs this loop with its share of each batch; files are written by rank 0 alone.
    saver: goes on from its checkpoint, where it has one, and saves at the records. Raises Diverged where the loss stops
    being a number.
    """
    model, controller = prepared.model, prepared.controller
    device = next(model.parameters()).device
    parallel.start_alike(model)
    if plan.shard == "fsdp2":
        parallel.shard(model)
    optimizer = make_optimizer(model, prepared.adapters, plan.lr, plan.weight_decay, plan.lr_ratio, plan.optimizer)
    if controller is not None:
        controller.attach(optimizer)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_factor(plan.decay, plan.warmup, plan.steps))
    name, higher = plan.metrics[0], metrics.higher_is_better(plan.metrics[0])

    torch.manual_seed(plan.seed + (rank() << 32))  # dropout: the same stream whatever was drawn for the factors
    saved = saver.load(model, optimizer, scheduler) if saver is not None else None
    net = parallel.replicate(model) if world() > 1 and plan.shard == "none" else model
    at = saved or Progress(best=-math.inf if higher else math.inf)
    batches = training_order(len(splits["train"]), plan.batch_size * plan.accumulation, plan.seed)
    batches = itertools.islice(batches, at.step, None)
    losses: list[Tensor] = []
    pending: list[Allocation] = []  # made since the last record, still on the device
    reset_peak(device)
    bar = tqdm(
        total=plan.steps,
        initial=at.step,
        unit="step",
        disable=not (is_main() and sys.stderr.isatty()),
        dynamic_ncols=True,
        leave=False,
    )
    model.train()
    started = clock(device)

    for step in range(at.step + 1, plan.steps + 1):
        rows = next(batches)
        for i, part in enumerate(np.split(rows, plan.accumulation), 1):
            inputs, labels = parallel.share(*collate(splits["train"], part, device))
            with parallel.holding_back(net, last=i == plan.accumulation):
                with autocast(plan.precision, device):
                    loss = task_loss(net(**inputs).logits, labels)
                (loss / plan.accumulation).backward()
            losses.append(loss.detach())
        if plan.shard == "fsdp2":
            parallel.average_gradients(model)
        if controller is not None:
            controller.after_backward()
        if plan.clip:
            # not model.parameters(): compaction makes new ones
            nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], plan.clip)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if controller is not None and (new := controller.last_allocation) is not None and new.step == step - 1:
            pending.append(new)
            if parallel.is_outdated(net):
                net = None  # its hooks on the parameters go first
                net = parallel.replicate(model)

        evaluates = step % plan.eval_every == 0 or step == plan.steps
        if not evaluates and step % plan.log_every:
            continue
        # A record is due: only here is anything read back from the device.
        mean_loss = parallel.mean(torch.stack(losses).mean()).item()
        at.seconds.append((clock(device) - started) / (len(losses) / plan.accumulation))
        at.train_s += at.seconds[-1] * len(losses) / plan.accumulation
        losses.clear()
        if not np.isfinite(mean_loss):
            bar.close()
            raise Diverged(f"the loss became {mean_loss} by step {step}; a smaller train.lr than {plan.lr:g} may help")
        for allocation in pending:
            log.allocation(allocation_record(allocation))
        pending.clear()
        log.metrics(
            step, "train", {"loss": mean_loss, "lr": float(scheduler.get_last_lr()[0]), **budget_now(controller)}
        )
        bar.update(step - bar.n)
        bar.set_postfix_str(progress(mean_loss, name, at.last.get(name), controller))
        beat(step)
        if evaluates:
            before = clock(device)
            at.last = last = evaluate(model, splits["dev"], plan, device)
            at.eval_s += clock(device) - before
            log.metrics(step, "dev", last)
            better = last[name] > at.best if higher else last[name] < at.best
            if is_settled(controller) and (not at.best_state or better):
                at.best, at.best_step, at.best_state = last[name], step, trained_state(model)
            if not sys.stderr.isatty():
                print(f"  step {step}/{plan.steps}  {progress(mean_loss, name, last[name], controller)}", flush=True)
        at.step = step
        if saver is not None:
            saver.save_if_due(model, optimizer, scheduler, at)
        started = clock(device)

    bar.close()
    memory = peak_mib(device)
    test: dict[int, float] = {}  # by step
    for step, state in ((plan.steps, {}), (at.best_step, at.best_state)):
        model.load_state_dict(state, strict=False)
        if "test" in splits and step not in test:
            before = clock(device)
            found = evaluate(model, splits["test"], plan, device)
            at.eval_s += clock(device) - before
            log.metrics(step, "test", found)
            test[step] = found[name]
    keep(model)
    step_ms = 1000 * statistics.median(at.seconds)
    tested = test.get(at.best_step), test.get(plan.steps)
    return Outcome(at.best, at.best_step, at.last[name], *tested, at.train_s, at.eval_s, step_ms, memory)


def is_settled(controller: RankController | None) -> bool:
    """Whether the ranks are what they will be at the end."""
    if controller is None or controller.schedule.initial == controller.schedule.final == int(controller.cost.sum()):
        return True
    last = controller.last_allocation
    return last is not None and last.step >= controller.schedule.settled


def budget_now(controller: RankController | None) -> dict[str, float]:
    """The budget and the mean rank kept; nothing for methods whose rank is fixed."""
    if controller is None or controller.score is None:
        return {}
    last, modules = controller.last_allocation, len(controller.bank.names)
    if last is None:
        return {"budget": controller.schedule.initial, "mean_rank": int(controller.bank.mask.sum()) / modules}
    return {"budget": last.budget, "mean_rank": last.kept.item() / modules}


def allocation_record(allocation: Allocation) -> dict[str, Any]:
    """One line of allocations.jsonl; step: the optimiser step it followed, counted from 0; quantiles (0, 25, 50, 75, 100 %) of each module's scores, never all of them."""
    levels = torch.linspace(0, 1, 5, dtype=allocation.scores.dtype, device=allocation.scores.device)
    counts = torch.bincount(allocation.module, minlength=len(allocation.names)).tolist()
    quantiles = {
        name: torch.quantile(scores, levels).tolist()
        for name, scores in zip(allocation.names, allocation.scores.split(counts), strict=True)
    }
    kept, parameters = int(allocation.kept), int(allocation.parameters)
    return {
        "step": allocation.step,
        "budget": allocation.budget,
        "unit": allocation.unit,
        "kept": kept,
        "parameters": parameters,
        "slack": allocation.budget - (parameters if allocation.unit == "parameters" else kept),
        "ranks": allocation.ranks,
        "score_quantiles": quantiles,
    }


def progress(loss: float, name: str, metric: float | None, controller: RankController | None) -> str:
    shown = [f"loss {loss:.3f}"]
    if metric is not None:
        shown.append(f"dev {name} {metric:.3f}")
    if controller is not None and controller.score is not None:
        shown.append(f"mean rank {budget_now(controller)['mean_rank']:.1f}")
    return "  ".join(shown)
