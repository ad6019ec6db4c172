"""Score fidelity: the loss increase without each triplet, and every score's value for the triplet."""

import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adarank import scores
from adarank.activations import ActivationRecorder
from adarank.adapters.lowrank import LowRank
from adarank.bank import Bank
from adarank.errors import SettingError
from adarank.harness.data.batches import training_order
from adarank.harness.data.task_types import TASK_TYPES, TaskType
from adarank.pieces import needs_of
from adarank.probe.ablation import Ablation, ablate, halves, loss_increase
from adarank.probe.journal import resume
from adarank.probe.reload import load_trained_weights, open_run
from adarank.runs.files import ADAPTER, JOURNAL
from adarank.scores.score import Buffers, Score


def measure(folder: Path, rows: int, passes: int) -> dict[str, Any]:
    """The content of probe.json: the loss increase over the first `rows` rows of dev without each triplet ("rise"), and
    every score, computed over `passes` training batches.

    Raises SettingError if the folder holds no finished run with triplets.
    """
    for option, value in (("--rows", rows), ("--passes", passes)):
        if value < 1:
            raise SettingError(f"{option} must be a whole number of at least 1 (got {value})")
    run = open_run(folder)
    adapters = {name: module for name, module in load_trained_weights(run).items() if isinstance(module, LowRank)}
    if not adapters:
        raise SettingError(f"{folder} has no triplets to ablate; choose a finished run of a low-rank method")
    model, seed, batch = run.model, run.spec.seed, run.spec.train.batch_size
    task_type = TASK_TYPES[run.task.task_type]
    dev, train = (task_type.encode(run.task, split, run.built.processor) for split in ("dev", "train"))
    rows = min(rows, len(dev))
    weights = digest_of_weights(folder)
    head = {"rows": rows, "batch": batch, "adapter": weights}

    def rest(done: Sequence[Ablation]) -> Iterator[Ablation]:
        return ablate(model, adapters, dev, task_type, rows, batch, len(done))

    parts = -(-rows // batch)
    ablations = resume(folder / JOURNAL, head, rest, parts, lambda line: Ablation(*line))
    loss, increase = loss_increase(ablations)
    ranks = {name: adapter.rank for name, adapter in adapters.items()}
    values = final_scores(model, adapters, train, task_type, batch, passes, seed)
    about = {"split": "dev", "rows": rows, "passes": passes, "adapter": weights, "loss": loss, "modules": ranks}
    return {**about, "rise": increase, "halves": halves(ablations), "scores": values}


def digest_of_weights(folder: Path) -> str:
    """SHA-256 of the trained adapter of the run in `folder`; tells whether a measurement belongs to these weights."""
    return hashlib.sha256((folder / ADAPTER / "adapter.safetensors").read_bytes()).hexdigest()


def final_scores(
    model: nn.Module,
    adapters: Mapping[str, LowRank],
    rows: Any,
    task_type: TaskType,
    batch: int,
    passes: int,
    seed: int,
) -> dict[str, list[float]]:
    """{score: its value for every triplet} of every score in `adarank.scores.__all__`, with default arguments.

    rows: the training rows, as `task_type` encoded them. A run's own averages are not kept; they are computed over
    `passes` training batches at the final weights (dropout active, no updates). A score that moves the model along a
    path (`igu`) sees the same batches on its path. The final weights count as settled (`settling`), since nothing
    changes any more. Scores that are undefined for these adapters are omitted. `random` is the control.
    """
    device = next(model.parameters()).device
    factors = {id(p) for adapter in adapters.values() for p in adapter.parameters(recurse=False)}
    for p in model.parameters():
        p.requires_grad_(id(p) in factors)
    bank = Bank(adapters)
    made = _default_scores(bank, seed)
    recorders = _record_activations(bank, {name: score for name, (score, _) in made.items()})
    paths = {name: buffers["path"] for name, (_, buffers) in made.items() if "path" in buffers}
    model.train()
    for together in [[name for name in made if name not in paths], *([name] for name in paths)]:
        for adapter in adapters.values():
            adapter.path = paths.get(together[0])
        torch.manual_seed(seed)
        order = training_order(len(rows), batch, seed)
        for _ in range(passes):
            model.zero_grad(set_to_none=True)
            task_type.loss(model, task_type.collate(rows, next(order), device)).backward()
            bank.sync_views()
            with torch.no_grad():
                for name in together:
                    if name in recorders:
                        bank.activation = recorders[name].mean()
                    score, buffers = made[name]
                    score.observe(buffers, bank)
    for adapter in adapters.values():
        adapter.watch = adapter.path = None
    model.eval()
    with torch.no_grad():
        for score, buffers in made.values():
            score.restart(buffers, bank)
        return {name: score.score(buffers, bank).double().tolist() for name, (score, buffers) in made.items()}


def _default_scores(bank: Bank, seed: int) -> dict[str, tuple[Score, Buffers]]:
    """{name: (score, its buffers)}. A score without usable defaults is reported on stderr and omitted."""
    made = {}
    for name in scores.__all__:
        make: Callable[..., Score] = getattr(scores, name)
        supplied = {"seed": seed} if "seed" in needs_of(make) else {}
        try:
            inspect.signature(make).bind(**supplied)
            score = make(**supplied)
        except (TypeError, SettingError) as error:
            print(f"score {name} is omitted, because it cannot be built with its defaults ({error})", file=sys.stderr)
            continue
        try:
            made[name] = (score, score.init(bank))
        except SettingError:  # undefined for these adapters
            continue
    return made


def _record_activations(bank: Bank, scores: Mapping[str, Score]) -> dict[str, ActivationRecorder]:
    """{name: recorder} of the scores that read activations. An adapter has one `watch`, which calls all recorders."""
    recorders, watches = {}, []
    for name, score in scores.items():
        if score.activation is not None:
            recorders[name] = ActivationRecorder(bank, score.activation)
            watches.append([adapter.watch for adapter in bank.adapters])
    for adapter, *functions in zip(bank.adapters, *watches, strict=True):
        adapter.watch = partial(_call_all, functions) if functions else None
    return recorders


def _call_all(functions: list[Callable[[LowRank, Tensor], None]], adapter: LowRank, x: Tensor) -> None:
    for function in functions:
        function(adapter, x)
