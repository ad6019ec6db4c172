"""Planted structure: does a method find the modules that need rank, and does it then beat uniform ranks?

    python experiments/reproduce/planted.py [--method NAME …] [--score NAME …] [--seeds N] [--json FILE]

A frozen random network of 12 linears is the base. The teacher is the same network with a ΔW of known rank in four of
them (4, 4, 2, 2: 12 triplets, a mean rank of 1). The student adapts all twelve to it, in a regression without noise.
Every method of conf/method runs with its own YAML, through the harness's `prepare`, at the same three learning rates;
the best rate is chosen on dev rows, and the figures are over test rows. Adaptive methods may hold 4 triplets per module
while they train and end at a mean of 1. A method without a budget starts at 4. A method that keeps one triplet of every
module (growth, prune and expand) ends at a mean of 2, which leaves it 12 to place. --score adds method=adalora with
that score (all: every score).

The result has one row for each method and seed: loss (the test loss ÷ the untrained student's), kept and budget
(triplets at the end), share (of them in the planted modules), spearman (final against planted ranks; null where either
is constant), ratio (loss ÷ that of LoRA at the same budget and seed, or at rank 1 where there is no budget). Methods
without triplets are listed as skipped, each with its reason.
"""

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import adarank
from adarank.errors import SettingError
from adarank.harness.config.compose import spec_from
from adarank.harness.config.messages import sentence
from adarank.harness.config.spec import Spec
from adarank.harness.config.validate import conf_folder
from adarank.harness.models import Built
from adarank.harness.run.prepare import lr_factor, make_optimizer, prepare
from adarank.runs.files import write_json
from analysis.stats import spearman

WIDTH, BLOCKS, ROWS, BATCH = 24, 6, 1024, 64
PLANTED = {"blocks.1.up": 4, "blocks.3.down": 4, "blocks.2.down": 2, "blocks.5.up": 2}
LARGEST = max(PLANTED.values())
SIZE = 1.0  # each singular value of a planted ΔW; those of the base lie between 0 and 2
STEPS = 300
RATES = (1e-2, 3e-2, 1e-1)


class Network(nn.Module):
    """h ← h + down(tanh(up(h))), six times; called as an init's batches call a model."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({part: nn.Linear(WIDTH, WIDTH) for part in ("up", "down")}) for _ in range(BLOCKS)
        )
        for parameter in self.parameters():
            nn.init.normal_(parameter, 0.0, WIDTH**-0.5 if parameter.ndim > 1 else 0.1)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        block: Any
        for block in self.blocks:
            x = x + block["down"](torch.tanh(block["up"](x)))
        return SimpleNamespace(logits=x, loss=None if labels is None else F.mse_loss(x, labels))


@torch.no_grad()
def draw_task(seed: int) -> tuple[Network, dict[str, tuple[Tensor, Tensor]]]:
    """The base, and (inputs, the teacher's outputs) of the splits train, dev and test."""
    torch.manual_seed(seed)
    base, teacher = Network(), Network()
    teacher.load_state_dict(base.state_dict())
    for name, rank in PLANTED.items():
        U, V = (torch.linalg.qr(torch.randn(WIDTH, rank)).Q for _ in range(2))
        teacher.get_submodule(name).weight.add_(SIZE * U @ V.t())  # type: ignore[operator]
    inputs = {split: torch.randn(ROWS, WIDTH) for split in ("train", "dev", "test")}
    return base, {split: (x, teacher(x).logits) for split, x in inputs.items()}


def with_ranks(overrides: Sequence[str]) -> list[str]:
    """The overrides with ranks that the task asks for: a mean of 1 at the end, up to 4 triplets a module on the way."""
    spec = spec_from(overrides)
    if spec.allocator is None:
        return [*overrides, "rank=1"]
    if not getattr(spec.allocator(), "keeps_budget", True):
        return [*overrides, f"rank={LARGEST}"]
    if spec.max_rank_factor > 1:  # it grows, or moves a constant budget
        return [*overrides, "rank=2", f"max_rank_factor={LARGEST}"]
    return [*overrides, "rank=1", f"init_rank={LARGEST}"]


def batches(x: Tensor, y: Tensor, seed: int) -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        for rows in torch.randperm(len(x), generator=generator).split(BATCH):
            yield {"x": x[rows], "labels": y[rows]}


def trial(spec: Spec, lr: float) -> dict[str, Any]:
    """One training run: test and dev loss ÷ the untrained student's, and the ranks at the end."""
    seed, config = spec.seed, replace(spec.train, lr=lr)
    base, splits = draw_task(seed)
    start = {split: base(**dict(zip(("x", "labels"), pair, strict=True))).loss.item() for split, pair in splits.items()}
    torch.manual_seed(seed)
    init_batches = batches(*splits["train"], seed + 2**31)
    prepared = prepare(Built(base, None, []), "all-linear", spec, torch.device("cpu"), init_batches)
    model, controller = prepared.model, prepared.controller
    optimizer = make_optimizer(model, prepared.adapters, config)
    if controller is not None:
        controller.attach(optimizer)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_factor(config))
    model.train()
    for _, batch in zip(range(config.steps), batches(*splits["train"], seed), strict=False):
        model(**batch).loss.backward()
        if controller is not None:
            controller.after_backward()
        nn.utils.clip_grad_norm_(
            [p for g in optimizer.param_groups for p in g["params"]], config.max_grad_norm or math.inf
        )
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        found = {s: F.mse_loss(model(x).logits, y).item() / start[s] for s, (x, y) in splits.items() if s != "train"}
    return {"lr": lr, **found, "ranks": adarank.ranks(model)}


def measure(
    overrides: Sequence[str], seed: int, steps: int = STEPS, rates: Sequence[float] = RATES, rank: int | None = None
) -> dict[str, Any]:
    """The row of one method and seed; rank: another than the task asks for. SettingError where it has no place here."""
    began = time.process_time()
    ranks = with_ranks(overrides) if rank is None else [*overrides, f"rank={rank}"]
    overrides = [*ranks, f"train.steps={steps}", f"seed={seed}"]
    spec = spec_from(overrides)
    trials = [trial(spec, lr) for lr in rates]
    best = min(trials, key=lambda t: t["dev"] if math.isfinite(t["dev"]) else math.inf)
    found = best["ranks"]
    kept = sum(found.values())
    budgeted = spec.allocator is None or getattr(spec.allocator(), "keeps_budget", True)
    return {
        "overrides": list(overrides),
        "seed": seed,
        "rank": spec.rank,
        "adaptive": spec.adaptive,
        "lr": best["lr"],
        "loss": best["test"],
        "dev_losses": {str(t["lr"]): t["dev"] for t in trials},
        "budget": spec.rank * len(found) if budgeted else None,
        "kept": kept,
        "share": sum(found[name] for name in PLANTED) / kept if kept else None,
        "spearman": spearman(list(found.values()), [PLANTED.get(name, 0) for name in found]),
        "ranks": found,
        "seconds": time.process_time() - began,
    }


def measure_lora(rank: int, seed: int, **how: Any) -> dict[str, Any]:
    """The row of LoRA at this rank everywhere: what an adaptive method of that budget is measured against."""
    return measure(["method=lora"], seed, rank=rank, **how)


def why_not(overrides: Sequence[str]) -> str | None:
    """Why these settings have no place here, None where they have."""
    try:
        spec = spec_from(overrides)
    except (SettingError, HydraException, OmegaConfBaseException) as error:
        return sentence(error)
    if spec.adapter is None:
        return "it has no adapter"
    return None if spec.low_rank else "its adapter has no triplets"


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_folder() / group).glob("*.yaml") if path.stem != "none")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--method", nargs="+", default=["all"])
    parser.add_argument("--score", nargs="+", default=[], help="scores to run with method=adalora; all: every one")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    methods = options("method") if arguments.method == ["all"] else arguments.method
    scores = options("score") if arguments.score == ["all"] else arguments.score
    cases = {m: [f"method={m}"] for m in ["lora", *methods]}
    cases |= {f"adalora, score={s}": ["method=adalora", f"score={s}"] for s in scores}
    rows, skipped = [], {}
    torch.set_num_threads(1)
    print(f"{'':34}{'loss':>9}{'÷ lora':>9}{'kept':>6}{'share':>7}{'spearman':>10}{'lr':>8}{'s':>6}")
    lora: dict[tuple[int, int], float] = {}
    for name, overrides in cases.items():
        reason = why_not(overrides)
        for seed in range(arguments.seeds if reason is None else 0):
            try:
                row = {"name": name, **measure(overrides, seed)}
            except SettingError as error:
                reason = sentence(error)
                break
            rank = row["rank"] if row["budget"] is not None else 1
            if (rank, seed) not in lora:
                lora[rank, seed] = row["loss"] if name == "lora" else measure_lora(rank, seed)["loss"]
            row["ratio"] = row["loss"] / lora[rank, seed]
            rows.append(row)
            shown = [f"{row[key]:.2f}" if row[key] is not None else "-" for key in ("share", "spearman")]
            print(
                f"{name + ', seed ' + str(seed):34}{row['loss']:9.4f}{row['ratio']:9.3f}{row['kept']:6}"
                f"{shown[0]:>7}{shown[1]:>10}{row['lr']:8g}{row['seconds']:6.1f}",
                flush=True,
            )
        if reason is not None:
            skipped[name] = reason
            print(f"{name:34}skipped: {reason}", flush=True)
    if arguments.json:
        task = {"planted": PLANTED, "width": WIDTH, "blocks": BLOCKS, "rows": ROWS, "size": SIZE}
        record = {"task": task, "steps": STEPS, "rates": RATES, "rows": rows, "skipped": skipped}
        write_json(arguments.json, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
