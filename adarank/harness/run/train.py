"""The training loop, the same for every method."""

import itertools
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from adarank.allocators.allocator import Allocation
from adarank.controller import RankController
from adarank.errors import RunFailed
from adarank.harness.config.spec import Spec
from adarank.harness.data.batches import grouped_by_length, training_order, without_full_mask
from adarank.harness.data.metrics import higher_is_better
from adarank.harness.data.packing import pack
from adarank.harness.data.task_types import TASK_TYPES, TaskType
from adarank.harness.device import autocast, clock, peak_mib, reset_peak
from adarank.harness.run import parallel
from adarank.harness.run.captured import captured_step
from adarank.harness.run.checkpoint import Progress, Saver
from adarank.harness.run.distributed import is_main, rank, say, shares_terminal, world
from adarank.harness.run.identity import title
from adarank.harness.run.microbatches import local_passes, pass_overhead, why_one_pass
from adarank.harness.run.prepare import Prepared, lr_factor, make_optimizer
from adarank.harness.tracking import Log
from adarank.penalties import orthogonality_value
from adarank.runs.files import CHECKPOINT
from adarank.runs.predictions import BEST, Columns


class Diverged(RunFailed):
    """The loss became NaN or infinite."""


@dataclass
class Outcome:
    """The results of a run: the best and last metric on dev, the metric on test at the best checkpoint (`tested` holds
    all metrics) and at the last step; times; rows and tokens, without padding, trained per second; peak memory;
    predictions: those of the test rows, as predictions.npz holds them."""

    best: float
    best_step: int
    last: float
    test: float | None
    test_last: float | None
    train_s: float
    eval_s: float
    step_ms: float
    rows_per_s: float
    tokens_per_s: float
    peak_mib: float | None
    tested: dict[str, float] | None = None
    predictions: dict[str, np.ndarray] = field(default_factory=dict)


def train(
    prepared: Prepared,
    splits: Mapping[str, Any],
    spec: Spec,
    metrics: Sequence[str],
    log: Log,
    beat: Callable[[int], None],
    keep: Callable[[nn.Module], None],
    saver: Saver | None = None,
    task_type: TaskType = TASK_TYPES["classify"],
) -> Outcome:
    """Train, evaluating on dev as `spec.train` requires, and finally test the last and the best dev checkpoint.

    splits: "train", "dev" and, if there is one, "test", encoded by `task_type`. metrics: their names; the first one
    selects the best checkpoint. beat(step) is called often; keep(model) is called once, before testing, with the best
    checkpoint's weights in the model. For an adaptive method only checkpoints at the final budget can be the best.
    Under torchrun every rank runs this loop on its share of each batch, and only rank 0 writes files. saver: keeps the
    best checkpoint; the loop resumes from its state, if it has one, and saves whenever it records and after the last
    step, so that a later failure costs no training. None: this call leaves nothing on disk. Raises Diverged if the loss
    is no longer finite.
    """
    if saver is None:
        with TemporaryDirectory() as folder:
            saver = Saver(Path(folder) / CHECKPOINT, None, resume=False)
            return train(prepared, splits, spec, metrics, log, beat, keep, saver, task_type)
    config = spec.train
    model, controller = prepared.model, prepared.controller
    device = next(model.parameters()).device
    parallel.broadcast_model(model)
    if config.shard == "fsdp2":
        parallel.shard(model)
    optimizer = make_optimizer(model, prepared.adapters, config, prepared.head)
    if controller is not None:
        controller.attach(optimizer)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_factor(config))
    name = metrics[0]
    higher = higher_is_better(name)

    torch.manual_seed(spec.seed + (rank() << 32))  # dropout's stream must not depend on the draws for the factors
    saved = saver.load(model, optimizer, scheduler)
    net = parallel.replicate(model) if world() > 1 and config.shard == "none" else model
    at = saved or Progress(best=-math.inf if higher else math.inf)
    lengths = splits["train"].lengths
    batches = training_order(len(splits["train"]), config.batch_size * config.gradient_accumulation_steps, spec.seed)
    if config.group_by_length:
        batches = grouped_by_length(batches, lengths, spec.seed)
    batches = itertools.islice(batches, at.step, None)
    collated_on = device if prepared.packing is None else torch.device("cpu")
    microbatches = 1 if why_one_pass(spec, task_type) else config.microbatches
    overhead = pass_overhead(model, device, config.precision)
    whole_step = captured_step(model, optimizer, controller, spec, task_type, splits["train"], device)
    losses: list[Tensor] = []
    pending: list[Allocation] = []  # those since the last record, still on the device
    evaluation_steps = set(config.evaluation_steps(len(splits["dev"])))
    reset_peak(device)
    live = is_main() and sys.stderr.isatty() and not shares_terminal()
    bar = tqdm(
        total=config.steps,
        initial=at.step,
        unit="step",
        disable=not live,
        dynamic_ncols=True,
        leave=False,
    )
    model.train()
    started = clock(device)

    def stop_if_infinite(loss: float, step: int, where: str = "") -> None:
        if not np.isfinite(loss):
            bar.close()
            raise Diverged(f"the loss{where} became {loss} by step {step}; try a train.lr below {config.lr:g}")

    for step in range(at.step + 1, config.steps + 1):
        rows = next(batches)
        at.rows += len(rows)
        at.tokens += int(lengths[rows].sum())
        if whole_step is not None:
            losses.append(whole_step(task_type.collate(splits["train"], rows, device)))
        else:
            mean_units = task_type.units(splits["train"], rows) / config.gradient_accumulation_steps / world()
            for i, part in enumerate(np.split(rows, config.gradient_accumulation_steps), 1):
                passes = local_passes(part, lengths, microbatches, overhead)
                of_part: list[Tensor] = []
                for j, own in enumerate(passes, 1):
                    together = part if len(passes) == 1 else own  # rows that are padded to the same length
                    batch = task_type.collate(splits["train"], together, collated_on)
                    batch = parallel.local_batch(batch) if len(passes) == 1 else batch
                    if prepared.packing is None:
                        batch = without_full_mask(batch, lengths[together])
                    else:
                        batch = pack(model, batch, prepared.packing, config.precision, device)
                    # The step's loss is the mean over all its rows or tokens, not over passes of unequal size.
                    weight = task_type.units(splits["train"], own) / mean_units
                    ends = i == config.gradient_accumulation_steps and j == len(passes)
                    with parallel.no_sync(net, last=ends):
                        with autocast(config.precision, device):
                            loss = weight * task_type.loss(net, batch)
                        (loss / config.gradient_accumulation_steps).backward()
                    of_part.append(loss.detach())
                losses.append(torch.stack(of_part).sum())
            if config.shard == "fsdp2":
                parallel.average_gradients(model)
            if controller is not None:
                controller.after_backward()
            if config.max_grad_norm:
                # not model.parameters(), because compaction creates new ones
                parameters = [p for group in optimizer.param_groups for p in group["params"]]
                nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
            optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if controller is not None and (new := controller.last_allocation) is not None and new.step == step - 1:
            pending.append(new)
            if parallel.is_outdated(net):
                net = None  # remove its hooks on the parameters first
                net = parallel.replicate(model)
        if controller is not None and step == config.observed_step:
            pending.append(controller.observation())

        evaluates = step in evaluation_steps
        if not evaluates and step % config.log_every:
            continue
        # A record is due. Nothing is read back from the device anywhere else.
        mean_loss = parallel.mean(torch.stack(losses).mean()).item()
        at.seconds.append((clock(device) - started) / (len(losses) / config.gradient_accumulation_steps))
        at.train_s += at.seconds[-1] * len(losses) / config.gradient_accumulation_steps
        losses.clear()
        stop_if_infinite(mean_loss, step)
        for allocation in pending:
            log.allocation(allocation_record(allocation))
        pending.clear()
        rate = float(scheduler.get_last_lr()[0])
        log.metrics(
            step,
            "train",
            {
                "loss": mean_loss,
                "lr": rate,
                **(controller.budget_now() if controller is not None else {}),
                **drift_now(controller),
            },
        )
        bar.update(step - bar.n)
        bar.set_postfix_str(progress(mean_loss, name, at.last.get(name), controller))
        beat(step)
        if evaluates:
            before = clock(device)
            at.last = last = task_type.evaluate(model, splits["dev"], metrics, config, device)
            at.eval_s += clock(device) - before
            stop_if_infinite(last["loss"], step, " on dev")  # only this shows what the last update did
            log.metrics(step, "dev", last)
            better = last[name] > at.best if higher else last[name] < at.best
            if is_settled(controller) and (not at.best_step or better):
                at.best, at.best_step = last[name], step
                saver.keep_best(model, step)
            if not live:
                say(title(spec), f"step {step}/{config.steps}  {progress(mean_loss, name, last[name], controller)}")
        at.step = step
        saver.save(model, optimizer, scheduler, at, at_once=step == config.steps)
        started = clock(device)

    bar.close()
    memory = peak_mib(device)
    differ = "test" in splits and at.best_step < config.steps
    if differ:
        saver.keep_last(model)
    saver.load_best(model, at.best_step)
    keep(model)
    tested: dict[int, dict[str, float]] = {}  # by step
    columns: dict[int, Columns] = {}

    def test(step: int) -> None:
        before = clock(device)
        per_row = partial(columns.__setitem__, step)
        tested[step] = task_type.evaluate(model, splits["test"], metrics, config, device, per_row=per_row)
        at.eval_s += clock(device) - before
        log.metrics(step, "test", tested[step])

    if differ:
        saver.load_last(model)
        test(config.steps)
        saver.load_best(model, at.best_step)
    if "test" in splits:
        test(at.best_step)
    return Outcome(
        best=at.best,
        best_step=at.best_step,
        last=at.last[name],
        test=tested[at.best_step][name] if tested else None,
        test_last=tested[config.steps][name] if tested else None,
        train_s=at.train_s,
        eval_s=at.eval_s,
        step_ms=1000 * statistics.median(at.seconds),
        rows_per_s=at.rows / at.train_s,
        tokens_per_s=at.tokens / at.train_s,
        peak_mib=memory,
        tested=tested.get(at.best_step),
        predictions={
            **columns.get(config.steps, {}),
            **({f"{column}{BEST}": values for column, values in columns[at.best_step].items()} if differ else {}),
        },
    )


def is_settled(controller: RankController | None) -> bool:
    """Whether the ranks are final."""
    return controller is None or controller.is_settled


def drift_now(controller: RankController | None) -> dict[str, float]:
    """The factors' deviation from orthonormality, R / γ of AdaLoRA's penalty for any γ; empty if λ is constant."""
    if controller is None or not controller.bank.adapters[0].learns_lambda:
        return {}
    return {"orthogonality": orthogonality_value(controller.bank, gamma=1.0).item()}


def allocation_record(allocation: Allocation) -> dict[str, Any]:
    """The log record of an allocation, as plain Python values; ranks: {module name: rank}.

    step: the preceding optimiser step, counted from 0; score_quantiles: {module name: the 0, 25, 50, 75 and 100 %
    quantiles of its scores}; slack: the unspent part of the budget, in the budget's unit. A record without an
    allocation (see `RankController.observation`) also has observed: true and score_means: {module name: mean score}.
    """
    levels = torch.linspace(0, 1, 5, dtype=allocation.scores.dtype, device=allocation.scores.device)
    counts = torch.bincount(allocation.module, minlength=len(allocation.names)).tolist()
    of_modules = dict(zip(allocation.names, allocation.scores.split(counts), strict=True))
    quantiles = {name: torch.quantile(scores, levels).tolist() for name, scores in of_modules.items()}
    kept, parameters = int(allocation.kept), int(allocation.parameters)
    observed: dict[str, Any] = {}
    if allocation.observed:
        means = {name: scores.mean().item() for name, scores in of_modules.items() if len(scores)}
        observed = {"observed": True, "score_means": means}
    return {
        "step": allocation.step,
        "budget": allocation.budget,
        "unit": allocation.unit,
        "kept": kept,
        "parameters": parameters,
        "slack": allocation.budget - (parameters if allocation.unit == "parameters" else kept),
        "ranks": allocation.ranks,
        "score_quantiles": quantiles,
        **observed,
    }


def progress(loss: float, name: str, metric: float | None, controller: RankController | None) -> str:
    shown = [f"loss {loss:.3f}"]
    if metric is not None:
        shown.append(f"dev {name} {metric:.3f}")
    if controller is not None and controller.score is not None:
        shown.append(f"mean rank {controller.budget_now()['mean_rank']:.1f}")
    return "  ".join(shown)
