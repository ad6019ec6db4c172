"""Training on real text as users do it: transformers.Trainer with PEFT, a plain loop with PEFT, and adarank.

    python experiments/bench/real_text.py --data GLUE --json experiments/results/real_text_cpu.json
    python experiments/bench/real_text.py --data GLUE --tasks rte --batches 24 --precisions bf16 --rounds 5
    python experiments/bench/real_text.py --tiny

GLUE is a folder with SST-2 and RTE, as for `task=sst2 task.path=GLUE`; rotten_tomatoes needs none. MiniLM-L6 is trained
on the rows and in the order of seed 0. PEFT and adarank adapt the same linears with the same ranks: LoRA has r = 8,
AdaLoRA starts at 12 and ends at 8.

    trainer_lora, trainer_adalora         transformers.Trainer and its DataCollatorWithPadding; update_and_allocate in a
                                          callback after each optimiser step
    peft_lora                             a loop of a few lines with the same collator, AdamW, clipping and scheduler
    lora, adalora, full                   the training loop of `adarank run`, with its defaults
    lora_one_pass, adalora_one_pass       the same with train.microbatches=1

Every contender's own training loop runs in a thread that pauses after each optimiser step. A round lets each loop run
to its next optimiser step, with the same rows, in alternating order, and so measures the complete time of a step:
batches, loss, gradients, clipping, optimiser, allocation, callbacks. On the CPU it is the process's own time, with one
thread unless --threads; on CUDA, where only one contender at a time is on the GPU, it is the time between events. A
ratio is the median of the rounds' ratios with its 95 % interval. Peak memory is that of a few steps in a separate
process, above the memory in use before the contender's model is copied. On a CPU without bf16 instructions, bf16 is
several times slower than fp32 and not informative; use --precisions fp32 there.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from threading import Semaphore, Thread, current_thread
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from adarank.harness.config.compose import spec_from
from adarank.harness.config.spec import Spec
from adarank.harness.data.batches import Encoded, training_order
from adarank.harness.data.task_types import TASK_TYPES
from adarank.harness.data.tasks.base import Task
from adarank.harness.device import autocast, choose_device, peak_mib, reset_peak
from adarank.harness.models import Base, Built
from adarank.harness.run.distributed import Nothing
from adarank.harness.run.prepare import lr_factor, prepare
from adarank.harness.run.resolve import build, chosen_targets, load_base, load_task
from adarank.harness.run.train import train
from adarank.runs.files import write_json
from experiments.bench.pairs import interleave, machine, parser, ratio
from experiments.bench.workload import timed

TASKS = ("rotten_tomatoes", "sst2", "rte")
PEFT = ("trainer_lora", "trainer_adalora", "peft_lora")
HARNESS = {
    "lora": ("method=lora",),
    "adalora": ("method=adalora",),
    "lora_one_pass": ("method=lora", "train.microbatches=1"),
    "adalora_one_pass": ("method=adalora", "train.microbatches=1"),
    "full": ("method=full",),
}
CONTENDERS = (*PEFT, *HARNESS)
RATIOS = (
    *((which, "peft_lora") for which in CONTENDERS if which != "peft_lora"),
    ("adalora", "trainer_lora"),
    ("adalora", "trainer_adalora"),
    ("adalora", "lora"),
    ("adalora", "full"),
)
ROWS = 4000  # training rows per task, which are enough for every round
MEMORY_STEPS = 3
TINY = ("model=tiny_bert", "model.width=32", "model.layers=1", "task.limit=40")


@dataclass(frozen=True)
class Cell:
    """One task with one batch size and precision. order: the rows of each step, [steps, batch]; settings: those of
    every `adarank run` here."""

    task: Task
    base: Base
    built: Built
    rows: Encoded
    order: np.ndarray
    device: torch.device
    settings: tuple[str, ...]

    def spec(self, which: str) -> Spec:
        return settled((*self.settings, *HARNESS[which]))


@cache
def settled(settings: tuple[str, ...]) -> Spec:
    return spec_from(settings)


def cell(task: str, batch: int, precision: str, steps: int, options: argparse.Namespace) -> Cell:
    where = () if task == "rotten_tomatoes" else (f"task.path={options.data}",)
    size = TINY if options.tiny else ("model=minilm_l6", f"task.limit={ROWS}")
    train_settings = (f"train.batch_size={batch}", f"train.steps={steps}", f"train.precision={precision}")
    settings = (f"task={task}", *where, *size, *train_settings)
    spec, device = settled((*settings, *HARNESS["lora"])), choose_device()
    loaded, base = load_task(spec), load_base(spec)
    built = build(spec, loaded, base, device)
    rows = TASK_TYPES[loaded.task_type].encode(loaded, "train", built.tokenizer)
    order = np.stack(list(islice(training_order(len(rows), batch, spec.seed), steps)))
    return Cell(loaded, base, built, rows, order, device, settings)


class Stopped(BaseException):
    """Ends a training loop."""


@contextmanager
def in_turns(training: Callable[[], object]) -> Iterator[Callable[[], None]]:
    """A training loop as a function that runs it to the end of its next optimiser step, in a separate thread."""
    go, done = Semaphore(0), Semaphore(0)
    failures: list[BaseException] = []
    stops = False

    def hold(*_: Any) -> None:
        if current_thread() is thread:
            done.release()
            go.acquire()
            if stops:
                raise Stopped

    def body() -> None:
        go.acquire()
        try:
            if not stops:
                training()
                raise RuntimeError("the loop ended before the benchmark did")
        except Stopped:
            pass
        except BaseException as error:
            failures.append(error)
        done.release()

    def step() -> None:
        go.release()
        done.acquire()
        if failures:
            raise failures[0]

    thread, hook = Thread(target=body, daemon=True), register_optimizer_step_post_hook(hold)
    thread.start()
    try:
        yield step
    finally:
        stops = True
        go.release()
        thread.join()
        hook.remove()


def loop(which: str, c: Cell, folder: str) -> Callable[[], object]:
    """A contender's whole training loop over its own copy of the model, with c.order's rows in each step."""
    built = replace(c.built, model=deepcopy(c.built.model))
    if which in HARNESS:
        spec = c.spec(which)
        prepared = prepare(built, chosen_targets(spec, c.task, c.base), spec, c.device)
        splits, nothing = {"train": c.rows, "dev": c.rows}, cast(Any, Nothing())
        return lambda: train(prepared, splits, spec, c.task.metrics, nothing, nothing.beat, lambda _: None)
    model = with_peft(which, built, c)
    parts = {**c.rows.tokens, "labels": c.rows.label.tolist()}
    rows = [{name: part[i] for name, part in parts.items()} for i in c.order.flatten()]
    return partial(plain_loop, model, rows, c) if which == "peft_lora" else trainer(which, model, rows, c, folder)


def with_peft(which: str, built: Built, c: Cell) -> Any:
    """The model with PEFT's adapters on the modules that `adarank run` adapts, with its ranks, scales and schedule."""
    import peft

    spec = c.spec("adalora")
    copied = replace(c.built, model=deepcopy(c.built.model))
    names = list(prepare(copied, chosen_targets(spec, c.task, c.base), spec, c.device).adapters)
    common: dict[str, Any] = {"task_type": "SEQ_CLS", "target_modules": names, "modules_to_save": [*built.head]}
    if which != "trainer_adalora":
        config: Any = peft.LoraConfig(r=spec.rank, lora_alpha=2 * spec.rank, **common)
    else:
        assert spec.schedule is not None, "AdaLoRA has a schedule"
        steps = spec.schedule.settings
        config = peft.AdaLoraConfig(
            init_r=spec.initial_rank, target_r=spec.rank, lora_alpha=2 * spec.initial_rank, orth_reg_weight=0.1,
            tinit=steps["t_i"], tfinal=steps["t_f"], deltaT=steps["interval"], total_step=len(c.order), **common,
        )  # fmt: skip
    return peft.get_peft_model(built.model.to(c.device), config)


def plain_loop(model: Any, rows: Sequence[dict[str, Any]], c: Cell) -> None:
    from transformers import DataCollatorWithPadding

    config = c.spec("lora").train
    collate = DataCollatorWithPadding(c.built.tokenizer)
    loader: Any = torch.utils.data.DataLoader(rows, batch_size=config.batch_size, collate_fn=collate)  # type: ignore[arg-type]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.lr, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_factor(config))
    model.train()
    for batch in loader:
        batch = batch.to(c.device)
        with autocast(config.precision, c.device):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()


def trainer(which: str, model: Any, rows: Sequence[dict[str, Any]], c: Cell, folder: str) -> Callable[[], object]:
    """Trainer.train with the Trainer's own defaults, except for the order of the rows, files and the progress bar."""
    import transformers

    class Allocating(transformers.TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            model.base_model.update_and_allocate(state.global_step)

    config = c.spec("lora").train
    on_cpu = c.device.type == "cpu"
    arguments = transformers.TrainingArguments(
        output_dir=folder, per_device_train_batch_size=config.batch_size, max_steps=len(c.order),
        learning_rate=config.lr, warmup_steps=config.warmup_steps, max_grad_norm=config.max_grad_norm,
        bf16=config.precision == "bf16", use_cpu=on_cpu, dataloader_pin_memory=not on_cpu,
        train_sampling_strategy="sequential", save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    callbacks = [Allocating()] if which == "trainer_adalora" else []
    run = transformers.Trainer(
        model,
        arguments,
        train_dataset=rows,
        processing_class=c.built.tokenizer,
        callbacks=callbacks,  # type: ignore[arg-type]
    )
    return run.train


def seconds(names: Sequence[str], c: Cell, rounds: int, warmup: int) -> dict[str, list[float]]:
    """The seconds of every round for the contenders `names`, whose models are in memory together."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        steps = {which: stack.enter_context(in_turns(loop(which, c, folder))) for which in names}
        calls = {which: partial(timed, step, c.device.type) for which, step in steps.items()}
        return interleave(calls, rounds, warmup)


def memory(which: str, c: Cell) -> float | None:
    """The peak memory of a few steps in MiB, above the memory in use before."""
    reset_peak(c.device)
    before = peak_mib(c.device)
    with tempfile.TemporaryDirectory() as folder, in_turns(loop(which, c, folder)) as step:
        step()
        reset_peak(c.device)
        for _ in range(MEMORY_STEPS - 1):
            step()
        peak = peak_mib(c.device)
    return None if before is None or peak is None else peak - before


def in_child(work: Callable[[], Any]) -> Any:
    """The result of work(), computed in a process forked from this one, which never trains itself."""
    context = get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send(work()))
    child.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise SystemExit("error: a contender failed; its traceback is above") from None
    finally:
        child.join()


def bench(task: str, batch: int, precision: str, options: argparse.Namespace) -> dict[str, Any]:
    """All measurements for one task, batch size and precision."""
    c = cell(task, batch, precision, options.warmup + options.rounds, options)
    peaks = {which: in_child(partial(memory, which, c)) for which in options.contenders}
    found: dict[str, list[float]] = {}
    for together in [options.contenders] if c.device.type == "cpu" else [[which] for which in options.contenders]:
        found |= in_child(partial(seconds, together, c, options.rounds, options.warmup))
    measured = c.rows.lengths[c.order[options.warmup :]]
    return {
        "task": task,
        "batch": batch,
        "precision": precision,
        "tokens_per_row": {"own": float(measured.mean()), "padded": float(measured.max(1).mean())},
        "seconds_per_100_rows": {which: 100 * sum(s) / measured.size for which, s in found.items()},
        "ratios": {f"{a} / {b}": ratio(found[a], found[b]) for a, b in RATIOS if a in found and b in found},
        "peak_mib": peaks,
    }


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--data", type=Path, help="the folder with SST-2 and RTE")
    arguments.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    arguments.add_argument("--batches", nargs="+", type=int, default=[16, 24])
    arguments.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    arguments.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    arguments.add_argument("--rounds", type=int, default=20)
    arguments.add_argument("--warmup", type=int, default=2)
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--tiny", action="store_true", help="a small random model and 40 rows of rotten_tomatoes")
    options = arguments.parse_args()
    if options.tiny:
        options.tasks, options.batches, options.precisions = ["rotten_tomatoes"], [4], options.precisions[:1]
        options.rounds = 3
    if options.data is None and set(options.tasks) - {"rotten_tomatoes"}:
        arguments.error("--data must be the folder with SST-2 and RTE (got none)")
    torch.set_num_threads(options.threads)
    if set(options.contenders) & set(PEFT):  # imported here, so that the processes that measure memory need not do so
        import peft as peft
        from transformers import Trainer as Trainer
    cells = []
    for task in options.tasks:
        for batch in options.batches:
            for precision in options.precisions:
                cells.append(bench(task, batch, precision, options))
                print(f"{task}, {batch} rows, {precision}: {cells[-1]['tokens_per_row']['padded']:.0f} tokens per row")
                for which, value in cells[-1]["seconds_per_100_rows"].items():
                    against = cells[-1]["ratios"].get(f"{which} / peft_lora")
                    shown = f"{against['median']:.3f} [{against['low']:.3f}, {against['high']:.3f}]" if against else ""
                    peak = cells[-1]["peak_mib"][which]
                    print(f"  {which:18s} {value:8.2f} s per 100 rows  {peak or 0:6.0f} MiB  {shown}", flush=True)
                if options.json:  # after every cell, because each takes long
                    about = {"machine": machine(), "threads": options.threads, "rounds": options.rounds}
                    write_json(options.json, {**about, "cells": cells})
    return 0


if __name__ == "__main__":
    sys.exit(main())
