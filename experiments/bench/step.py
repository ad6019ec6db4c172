"""One training step, side by side: PEFT LoRA, PEFT AdaLoRA, our LoRA, our AdaLoRA, full fine-tuning, the frozen floor.

    python experiments/bench/step.py --json experiments/results/step_cpu.json
    python experiments/bench/step.py --models encoder_6x384 --pairs 20 --json /tmp/quick.json

A ratio is the median of the rounds' ratios, with its 95 % interval. On the CPU every round runs one step of each
contender, and the time is the process's own (one thread unless --threads). On CUDA only one contender at a time is on
the GPU, round i of one is compared with round i of another, and the time is measured with events. AdaLoRA is in its
allocation phase and masks in every step. `controller` is the share of its step spent on penalty and allocator, measured
in further steps after the rounds, because timing a part of a step waits for the GPU. `bound` is a lower bound for every
low-rank adapter of this kind: the frozen floor plus the adapter's six thin products alone (without autograd, Python
overhead or optimiser), timed in the same way.
"""

import argparse
import gc
import sys
from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import nn

from experiments.bench.pairs import interleave, ratio, write
from experiments.bench.workload import (
    CONTENDERS,
    DTYPES,
    FINAL,
    RANK,
    Contender,
    batch,
    build,
    contender,
    controller_seconds,
    parser,
    products,
    timed,
)

RATIOS = (
    ("adalora", "lora"),
    ("adalora", "peft_lora"),
    ("adalora", "peft_adalora"),
    ("adalora_compacted", "peft_lora"),
    ("adalora_compacted", "lora"),
    ("lora", "peft_lora"),
    ("peft_adalora", "peft_lora"),
    ("full", "peft_lora"),
    ("floor", "peft_lora"),
    ("floor", "peft_adalora"),
)
BOUNDS = (("peft_lora", RANK), ("peft_lora", FINAL), ("peft_adalora", RANK))
PRODUCTS = {f"products_{rank}": rank for rank in (RANK, FINAL)}


def kernels(work: Contender) -> int:
    """CUDA kernels launched in one step."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        work.step()
        torch.cuda.synchronize()
    return sum(event.count for event in profile.key_averages() if event.device_type == torch.profiler.DeviceType.CUDA)


def measure(
    names: Sequence[str], base: nn.Module, linears: str, inputs: dict[str, torch.Tensor], options: argparse.Namespace
) -> tuple[dict[str, list[float]], dict[str, dict[str, float]], dict[str, int]]:
    """For the contenders and products `names`, which are in memory together: the seconds of every round, the
    controller's seconds per step, and on CUDA the number of kernels per step."""
    rows, tokens = inputs["input_ids"].shape
    base = deepcopy(base).to(options.device)
    wrap = torch.compile if options.compile else (lambda model: model)
    work = {which: contender(which, base, linears, inputs, wrap) for which in names if which in CONTENDERS}
    calls = {which: w.step for which, w in work.items()}
    calls |= {k: products(base, linears, rows * tokens, rank) for k, rank in PRODUCTS.items() if k in names}
    del base
    for w in work.values():
        w.step()
    seconds = interleave({k: partial(timed, call, options.device) for k, call in calls.items()}, options.pairs, 2)
    parts = {which: controller_seconds(w, options.pairs) for which, w in work.items()}
    launched = {which: kernels(w) for which, w in work.items()} if options.device == "cuda" else {}
    return seconds, {which: found for which, found in parts.items() if found}, launched


def bench(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Every ratio on one model."""
    base, linears = build(name, DTYPES[options.dtype])
    inputs = batch(name, options.rows, options.tokens, options.device)
    names = [*options.contenders, *PRODUCTS]
    seconds: dict[str, list[float]] = {}
    parts: dict[str, dict[str, float]] = {}
    launched: dict[str, int] = {}
    for together in [names] if options.device == "cpu" else [[which] for which in names]:
        new_seconds, new_parts, new_launched = measure(together, base, linears, inputs, options)
        seconds |= new_seconds
        parts |= new_parts
        launched |= new_launched
        gc.collect()  # a controller and its hooks refer to each other
        if options.device == "cuda":
            torch.cuda.empty_cache()
    return {
        "pairs": options.pairs,
        "batch": [options.rows, options.tokens],
        "median_ms": {k: 1000 * sorted(v)[len(v) // 2] for k, v in seconds.items()},
        "ratios": {f"{a} / {b}": ratio(seconds[a], seconds[b]) for a, b in RATIOS if a in seconds and b in seconds},
        "bound": {
            f"floor + products at r = {r} / {b}": ratio(
                [f + p for f, p in zip(seconds["floor"], seconds[f"products_{r}"], strict=True)], seconds[b]
            )
            for b, r in BOUNDS
            if "floor" in seconds and b in seconds
        },
        "controller": {
            which: {part: s / (sum(seconds[which]) / options.pairs) for part, s in found.items()}
            for which, found in parts.items()
        },
        **({"kernels": launched} if launched else {}),
    }


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    arguments.add_argument("--pairs", type=int, default=40)
    arguments.add_argument("--rows", type=int, default=8)
    arguments.add_argument("--tokens", type=int, default=64)
    arguments.add_argument("--compile", action="store_true")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    found = {}
    for name in options.models:
        found[name] = bench(name, options)
        print(name)
        for pair, value in (found[name]["ratios"] | found[name]["bound"]).items():
            print(f"  {pair:42s} {value['median']:.3f}  [{value['low']:.3f}, {value['high']:.3f}]")
        for which, parts in found[name]["controller"].items():
            print(f"  {which}: " + ", ".join(f"{part} {share:.2%} of the step" for part, share in parts.items()))
    write(options, ("device", "dtype", "compile", "threads"), models=found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
