"""The cost of pruning: every score orders all triplets of an unpruned run; the model is pruned to several sizes and
trained further.

The run has pruned nothing (for example method=svd_lora, which is AdaLoRA without its allocations), so that the triplets
that a score would discard are measured, too. The oracle orders triplets by the measured increase of the loss without
each of them, oracle_absolute by its magnitude: a triplet whose removal alone lowers the loss may still do much together
with others. They see the first rows of dev, and all losses are those of the other rows, so that no order has seen the
rows that judge it.
"""

import contextlib
import copy
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from adarank.adapters.lowrank import LowRank, adapters_of
from adarank.controller import RankController
from adarank.errors import SettingError
from adarank.harness.config.spec import Spec
from adarank.harness.data.task_types import TASK_TYPES, TaskType
from adarank.harness.data.tasks.base import Task
from adarank.harness.run.distributed import Nothing
from adarank.harness.run.prepare import Prepared
from adarank.harness.run.train import Diverged, train
from adarank.probe import score_fidelity
from adarank.probe.ablation import ablate, loss_increase
from adarank.probe.journal import resume
from adarank.probe.reload import load_trained_weights, open_run
from adarank.runs.files import JOURNAL, PROBE, PRUNING_JOURNAL, read_object, write_json

UNPRUNED = "unpruned"
ORACLE, WORST, STEPWISE, ABSOLUTE = "oracle", "worst_first", "oracle_stepwise", "oracle_absolute"  # by measured losses
SEED_OFFSET = 2**30  # further training draws different rows than training did, the same for every order


def shares(text: str) -> list[float]:
    """The shares in "0.75,0.5,0.25", the largest first. Raises SettingError for anything else."""
    try:
        values = sorted({float(word) for word in text.split(",")}, reverse=True)
    except ValueError:
        values = []
    if not values or not all(0 < value < 1 for value in values):
        raise SettingError(f"--keep must be shares of the triplets between 0 and 1, as in 0.75,0.5 (got {text})")
    return values


def measure(folder: Path, rows: int, passes: int, keep: Sequence[float], steps: int) -> dict[str, Any]:
    """The content of pruning.json: loss and metric for every order and share, after pruning and after `steps` steps.

    rows, passes: as in `score_fidelity.measure`, whose probe.json is read, or written if it is missing or was measured
    differently. keep: shares of the triplets to keep, descending. steps: 0 measures only the pruned models.

    Raises SettingError if the run adapts its rank, has no triplets, or dev has no rows beyond the first `rows`.
    """
    if steps < 0:
        raise SettingError(f"--retrain must be a whole number of at least 0 (got {steps})")
    run = open_run(folder)
    if run.spec.adaptive:
        raise SettingError(
            f"--pruning needs a run that keeps all of its triplets, such as method=svd_lora (got {folder}, whose "
            f"method={run.spec.method} allocates ranks)"
        )
    if rows >= len(run.task.dev):
        raise SettingError(
            f"--rows must be below {len(run.task.dev)}, the rows of dev, whose others judge the orders (got {rows})"
        )
    probe = _probe(folder, rows, passes)
    adapters = {name: module for name, module in load_trained_weights(run).items() if isinstance(module, LowRank)}
    task_type = TASK_TYPES[run.task.task_type]
    splits = {
        "train": task_type.encode(run.task, "train", run.built.processor),
        "seen": task_type.encode(run.task, "dev", run.built.processor),
        "dev": task_type.encode(_without_first(run.task, rows), "dev", run.built.processor),
    }
    increase = probe["rise"]
    orders = {**probe["scores"], ORACLE: increase, WORST: [-value for value in increase]}
    orders |= {STEPWISE: increase, ABSOLUTE: [abs(value) for value in increase]}  # STEPWISE reorders after each size
    counts = list(dict.fromkeys(max(1, round(share * len(increase))) for share in keep))
    metric = run.task.metrics[0]
    head = {"adapter": probe["adapter"], "rows": rows, "passes": passes, "counts": counts, "steps": steps}
    head["orders"] = list(orders)
    states = [(UNPRUNED, len(increase)), *((order, count) for order in orders for count in counts)]

    def rest(done: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for order, count in states[len(done) :]:
            if order == STEPWISE:
                values = stepwise(run.model, adapters, splits["seen"], task_type, rows, run.spec, increase, done)
            else:
                values = orders.get(order, increase)
            kept = highest(values, count)
            known = next((state for state in done if state["kept"] == kept), None)
            if known is not None:  # another order left the same triplets
                yield {**known, "order": order}
                continue
            found = pruned_and_trained(run.model, adapters, kept, splits, run.spec, metric, task_type, steps)
            yield {"order": order, "triplets": count, "kept": kept, **found}

    measured = resume(folder / PRUNING_JOURNAL, head, rest, len(states), dict, "states")
    about = {"split": "dev", "seen": rows, "rows": len(splits["dev"]), "metric": metric, "steps": steps}
    return {**about, "triplets": len(increase), "modules": probe["modules"], "states": measured}


def highest(values: Sequence[float], count: int) -> list[int]:
    """The indices, ascending, of the `count` highest values; among equal ones, the first are kept, as by allocators."""
    order = np.argsort(-np.asarray(values, dtype=np.float64), kind="stable")
    return sorted(int(i) for i in order[:count])


def stepwise(
    model: nn.Module,
    adapters: Mapping[str, LowRank],
    rows: Any,
    task_type: TaskType,
    count: int,
    spec: Spec,
    increase: Sequence[float],
    done: Sequence[Mapping[str, Any]],
) -> list[float]:
    """The values by which the stepwise oracle orders triplets, [triplets]: the loss increase without each triplet, in
    the model pruned as in the oracle's last state in `done`, and −inf for triplets pruned there. Without such a state,
    `increase`, which was measured in the unpruned model."""
    earlier = [state for state in done if state["order"] == STEPWISE]
    if not earlier:
        return list(increase)
    kept = earlier[-1]["kept"]
    with pruned(adapters, kept):
        batches = list(ablate(model, adapters, rows, task_type, count, spec.train.batch_size))
    values = [-float("inf")] * len(increase)
    for index, value in zip(kept, loss_increase(batches)[1], strict=True):
        values[index] = value
    return values


@contextlib.contextmanager
def pruned(adapters: Mapping[str, LowRank], kept: Sequence[int]) -> Iterator[None]:
    """A context in which only the triplets with these indices, counted module by module, are active."""
    masks = [adapter.mask.clone() for adapter in adapters.values()]
    active = torch.zeros(sum(map(len, masks)), dtype=torch.bool)
    active[list(kept)] = True
    for adapter, mask in zip(adapters.values(), active.split([len(mask) for mask in masks]), strict=True):
        adapter.mask.copy_(mask)
    try:
        yield
    finally:
        for adapter, mask in zip(adapters.values(), masks, strict=True):
            adapter.mask.copy_(mask)


def pruned_and_trained(
    model: nn.Module,
    adapters: Mapping[str, LowRank],
    kept: Sequence[int],
    splits: Mapping[str, Any],
    spec: Spec,
    metric: str,
    task_type: TaskType,
    steps: int,
) -> dict[str, Any]:
    """{"loss", "metric"} on splits["dev"] with the triplets `kept` alone, and {"loss_after", "metric_after"} after
    `steps` further steps (null if there are none or they diverge). The model does not change."""
    with pruned(adapters, kept):
        before = evaluated(model, splits["dev"], spec, metric, task_type)
        after = {"loss": None, metric: None}
        if steps:
            with contextlib.suppress(Diverged):
                trained = trained_on(model, splits, spec, metric, task_type, steps)
                after = evaluated(trained, splits["dev"], spec, metric, task_type)
    return {
        "loss": before["loss"],
        "metric": before[metric],
        "loss_after": after["loss"],
        "metric_after": after[metric],
    }


def evaluated(model: nn.Module, rows: Any, spec: Spec, metric: str, task_type: TaskType) -> dict[str, Any]:
    """The loss and the metric over all rows, in fp32 whatever the run's precision."""
    device = next(model.parameters()).device
    return task_type.evaluate(model, rows, [metric], replace(spec.train, precision="fp32"), device)


def trained_on(
    model: nn.Module, splits: Mapping[str, Any], spec: Spec, metric: str, task_type: TaskType, steps: int
) -> nn.Module:
    """A copy of the model after `steps` further steps with the run's settings, in which pruned triplets stay pruned.

    The optimiser's state is new, and its first steps at the full learning rate would do more damage than pruning.
    Therefore the rate rises to the run's over the first half of these steps and falls to 0 over the second.
    """
    trained = copy.deepcopy(model)
    adapters = adapters_of(trained)
    controller = RankController(
        adapters,
        penalty=None if spec.penalty is None else spec.penalty(),
        variant=spec.variant,
        pruned_triplets="frozen",
    )
    controller.bank.zero_pruned()
    curve: dict[str, Any] = {"warmup": steps // 2, "lr_scheduler": "linear"}
    config = replace(spec.train, steps=steps, eval_every=steps, log_every=steps, **curve)
    used = replace(spec, train=config, seed=spec.seed + SEED_OFFSET)
    log: Any = Nothing()
    rows = {name: splits[name] for name in ("train", "dev")}
    prepared = Prepared(trained, adapters, controller)
    with contextlib.redirect_stdout(io.StringIO()):  # its progress would take one line per state
        train(prepared, rows, used, [metric], log, log.beat, lambda _: None, task_type=task_type)
    return trained


def _probe(folder: Path, rows: int, passes: int) -> dict[str, Any]:
    """The run's probe.json if it belongs to these weights, rows and passes; otherwise measured now and written."""
    asked = {"adapter": score_fidelity.digest_of_weights(folder), "rows": rows, "passes": passes}
    probe, _ = read_object(folder / PROBE)
    if {key: probe.get(key) for key in asked} != asked:
        probe = score_fidelity.measure(folder, rows, passes)
        write_json(folder / PROBE, probe)
        (folder / JOURNAL).unlink(missing_ok=True)
    return probe


def _without_first(task: Task, rows: int) -> Task:
    """The task without the first rows of its dev split."""
    others = task.dev.take(np.arange(rows, len(task.dev)))
    return replace(task, dev=others, fingerprint=f"{task.fingerprint} without the first {rows}")
