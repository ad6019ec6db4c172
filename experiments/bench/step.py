"""One training step, side by side: PEFT LoRA, PEFT AdaLoRA, our LoRA, our AdaLoRA, full fine-tuning, the frozen floor.

    python experiments/bench/step.py --json experiments/results/step_cpu.json
    python experiments/bench/step.py --models encoder_6x384 --pairs 20 --json /tmp/quick.json

Every round runs one step of each contender; a ratio is the median of the rounds' ratios, with its 95 % interval. On the
CPU the time is the process's own (one thread unless --threads), on CUDA it is measured with events. AdaLoRA stands in
its allocation phase and masks in every step. `controller` is the share of its step that penalty and allocator take,
measured inside it. `bound` is what no low-rank adapter of this kind can beat on the machine: the frozen floor plus the
adapter's six thin products alone (no autograd, no Python around them, no optimiser), timed in the same rounds.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

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
    parser,
    products,
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


def timed(work: Callable[[], object], device: str) -> float:
    """Seconds of one call: process time on the CPU, CUDA events on a GPU."""
    if device == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1000
    started = time.process_time()
    work()
    return time.process_time() - started


def kernels(work: Contender) -> int:
    """CUDA kernels launched in one step."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        work.step()
        torch.cuda.synchronize()
    return sum(event.count for event in profile.key_averages() if event.device_type == torch.profiler.DeviceType.CUDA)


def bench(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Every ratio on one model."""
    base, linears = build(name, DTYPES[options.dtype], options.device)
    inputs = batch(name, options.rows, options.tokens, options.device)
    wrap = torch.compile if options.compile else (lambda model: model)
    work = {which: contender(which, base, linears, inputs, wrap) for which in options.contenders}
    for w in work.values():
        w.step()
        w.shares.update(dict.fromkeys(w.shares, 0.0))
    calls = {k: w.step for k, w in work.items()}
    calls |= {f"products_{r}": products(base, linears, options.rows * options.tokens, r) for r in (RANK, FINAL)}
    seconds = interleave({k: partial(timed, call, options.device) for k, call in calls.items()}, options.pairs, 2)
    rounds = options.pairs + 2
    found: dict[str, Any] = {
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
            k: {part: s / rounds / (sum(seconds[k]) / len(seconds[k])) for part, s in w.shares.items()}
            for k, w in work.items()
            if w.shares
        },
    }
    if options.device == "cuda":
        found["kernels"] = {k: kernels(w) for k, w in work.items()}
    return found


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
