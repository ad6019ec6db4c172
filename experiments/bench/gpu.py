"""Measures everything about the speed of a step that needs a GPU, in one run of at most seven minutes.

    python experiments/bench/gpu.py --json experiments/results/gpu.json       # on a GPU with 40 GB or more
    python experiments/bench/gpu.py --device cpu --tiny                       # the same script, before a GPU is rented

Contenders: the frozen floor, full fine-tuning, PEFT LoRA, our LoRA and AdaLoRA, before and after compaction; each in a
user's own loop and captured (`adarank.capture`; PEFT's model, too), and ours also fed (the captured step's code
without graphs). Cases: a Llama of 1.1B in bf16 at 4 × 256 tokens, and a BERT of 6 layers in fp32 under bf16 autocast at
16 × 32 and 64 tokens with padding. Every contender has the GPU to itself and is freed before the next one; one pass
goes through the contenders forwards and one backwards, so that `drift`, a contender's second median over its first,
reveals a changing clock.

For each contender it records `ms`, the time of every step (CUDA events between steps that follow one another without
waiting, as in training), and `wall_ms`, their mean by the host's clock; `host_ms`, the host's time for a step without
waiting for it; the number of kernels, and `busy_ms`, the sum of their times; `peak_mib` and `reserved_mib` above the
idle base; the allocator's retries; the losses of the first eight steps and a hash of the weights after them. Captured
losses and weights must equal those without graphs bit for bit, if these are reproducible, and be near the eager losses.

Contenders that do not fit into --budget seconds are listed as skipped. The JSON is rewritten after every contender. On
the CPU, graphs are tapes (experiments/bench/tape.py): the script then checks that captured equals fed, and that nothing
inside a graph would make a GPU's host wait; times are meaningless. Exit status 1: a contender or a check failed.
"""

import argparse
import gc
import hashlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor, nn

from adarank.runs.files import write_json
from experiments.bench import pairs
from experiments.bench.tape import Tape
from experiments.bench.training_step import training_step
from experiments.bench.workload import MODELS, classifier, contender

Batch = Mapping[str, Tensor]
Step = Callable[[Batch], Tensor]


@dataclass(frozen=True)
class Case:
    """A model (architecture, layers, width, vocabulary), its dtype and autocast, and batches of `rows` rows whose
    lengths alternate between `lengths`. padded: half of each batch's first row is padding."""

    model: tuple[str, int, int, int]
    dtype: torch.dtype
    autocast: torch.dtype | None
    rows: int
    lengths: tuple[int, ...]
    padded: bool


CASES = {
    "decoder_1b": Case(MODELS["decoder_1b"], torch.bfloat16, None, 4, (256,), False),
    "encoder_6x384": Case(MODELS["encoder_6x384"], torch.float32, torch.bfloat16, 16, (32, 64), True),
}
STEPS = (
    *("peft_lora", "adalora+captured", "lora+captured", "full", "adalora", "adalora_compacted", "lora"),
    *("adalora_compacted+captured", "adalora+fed", "adalora_compacted+fed", "lora+fed"),
    *("peft_lora+captured", "full+captured", "floor", "floor+captured"),
)
BASELINES = ("peft_lora", "peft_lora+captured", "full")
NEVER_SLOWER = tuple((f"adalora_compacted{form}", f"adalora{form}", 1.0) for form in ("", "+fed", "+captured"))
AIMS = {  # at most
    "decoder_1b": (
        ("adalora+captured", "lora+captured", 1.02),
        ("adalora+captured", "peft_lora", 0.5),
        ("adalora+captured", "full", 1.0),
        *NEVER_SLOWER,
    ),
    "encoder_6x384": NEVER_SLOWER,
}
CHECKED = 8  # steps whose losses are compared; they also warm up
HOST_STEPS = 5
NEAR = {torch.bfloat16: 2e-2, torch.float32: 1e-4}  # relative tolerance for losses of another form, by compute dtype


def batches_of(case: Case, device: str) -> list[Batch]:
    """CHECKED batches, used in turn."""
    draw = torch.Generator().manual_seed(3)
    found: list[Batch] = []
    for i in range(CHECKED):
        shape = (case.rows, case.lengths[i % len(case.lengths)])
        batch = {
            "input_ids": torch.randint(1, case.model[3], shape, generator=draw),
            "labels": torch.randint(0, 2, shape[:1], generator=draw),
        }
        if case.padded:
            batch["attention_mask"] = torch.ones_like(batch["input_ids"])
            batch["attention_mask"][0, shape[1] // 2 :] = 0
        found.append({name: t.to(device) for name, t in batch.items()})
    return found


def without_dropout(model: nn.Module) -> nn.Module:
    """`model` without dropout, so that the losses of different forms of its step are comparable."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def times(step: Step, batches: Sequence[Batch], steps: int, cuda: bool) -> dict[str, Any]:
    """Milliseconds of each of `steps` consecutive steps, and those of the host alone."""
    turns = [batches[i % len(batches)] for i in range(steps)]
    _wait(cuda)
    began = time.perf_counter()
    marks = [_mark(cuda)]
    for batch in turns:
        step(batch)
        marks.append(_mark(cuda))
    _wait(cuda)
    wall = time.perf_counter() - began
    host = []
    for batch in turns[:HOST_STEPS]:
        _wait(cuda)
        began = time.perf_counter()
        step(batch)
        host.append(1000 * (time.perf_counter() - began))
    _wait(cuda)
    ms = [a.elapsed_time(b) if cuda else 1000 * (b - a) for a, b in pairwise(marks)]
    return {"ms": ms, "wall_ms": 1000 * wall / steps, "host_ms": statistics.median(host)}


def _mark(cuda: bool) -> Any:
    """A point in time: an event on the current stream, or the clock."""
    if not cuda:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _wait(cuda: bool) -> None:
    if cuda:
        torch.cuda.synchronize()


def kernels(step: Step, batch: Batch) -> dict[str, float]:
    """The number of kernels and copies in one step on the GPU, and the sum of their times."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step(batch)
        torch.cuda.synchronize()
    events = [e for e in profile.key_averages() if e.device_type == torch.profiler.DeviceType.CUDA]
    return {"kernels": sum(e.count for e in events), "busy_ms": sum(e.self_device_time_total for e in events) / 1000}


def memory(idle: int, retries: int) -> dict[str, float]:
    """Peaks of the allocator since they were reset, above the `idle` bytes, and its retries beyond `retries`."""
    return {
        "peak_mib": (torch.cuda.max_memory_allocated() - idle) / 2**20,
        "reserved_mib": (torch.cuda.max_memory_reserved() - idle) / 2**20,
        "retries": _retries() - retries,
    }


def _retries() -> int:
    return torch.cuda.memory_stats().get("num_alloc_retries", 0)  # type: ignore[no-any-return]


@torch.no_grad()
def fingerprint(optimizer: torch.optim.Optimizer) -> str:
    """A hash of the fp64 norms of all trained tensors, because bf16 losses are too coarse to reveal a wrong step."""
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    norms = [torch.linalg.vector_norm(p, dtype=torch.float64).item() for p in trained]
    return hashlib.sha256(repr(norms).encode()).hexdigest()[:16]


def measure(
    name: str, case: Case, base: nn.Module, linears: str, batches: Sequence[Batch], steps: int, cuda: bool
) -> dict[str, Any]:
    """All findings on one contender, which shares the device only with `base`."""
    which, _, form = name.partition("+")
    tapes: list[Tape] = []

    def tape() -> Tape:
        tapes.append(Tape())
        return tapes[-1]

    torch.manual_seed(1)
    if cuda:
        idle, retries = torch.cuda.memory_allocated(), _retries()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    work = contender(which, base, linears, {})
    step = training_step(work, form or "eager", case.autocast, True if cuda else tape)
    losses = [step(batch).item() for batch in batches]
    found: dict[str, Any] = {"first_steps_s": time.perf_counter() - began, "losses": losses}
    found["weights"] = fingerprint(work.optimizer)
    found |= times(step, batches, steps, cuda)
    if cuda:
        found |= memory(idle, retries) | kernels(step, batches[0])
    else:
        found["graphs"] = len(tapes)
        found["syncs"] = [sync for recorded in tapes for sync in recorded.syncs]
    return found


def compare(case: Case, steps: Mapping[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Compare captured steps with the same code without graphs (fed, or eager if there is nothing to feed): losses and
    weights must be equal if that code gives the same weights in both passes, which not all GPU kernels do. Captured and
    fed losses must also be near the eager ones. Returns the largest relative difference of the losses of the first
    CHECKED steps, and whether the weights after them are the same."""
    first = {name: passes[0] for name, passes in steps.items() if "losses" in passes[0]}
    found = {}
    for name in first:
        which, _, form = name.partition("+")
        for other in {"captured": (f"{which}+fed", which), "fed": (which,)}.get(form, ()):
            if other not in first:
                continue
            ours, theirs = first[name], first[other]
            difference = max(abs(a - b) / abs(b) for a, b in zip(ours["losses"], theirs["losses"], strict=True))
            same = ours["weights"] == theirs["weights"]
            exact = form == "captured" and (other.endswith("+fed") or f"{which}+fed" not in STEPS)
            repeats = len({p["weights"] for p in steps[other] if "weights" in p}) == 1
            near = difference <= NEAR[case.autocast or case.dtype]
            passed = difference == 0 and same if exact and repeats else near
            pair = f"{name} = {other}" if exact else f"{name} ~ {other}"
            found[pair] = {"difference": difference, "same_weights": same, "repeats": repeats, "passed": passed}
    return found


def summary(name: str, case: Case, steps: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians, drift, ratios with their intervals, aims, and comparisons of losses, for the measurements."""
    ms = {which: [p["ms"] for p in passes] for which, passes in steps.items() if all("ms" in p for p in passes)}

    def ratio(a: str, b: str) -> dict[str, float]:
        shared = min(len(ms[a]), len(ms[b]))  # paired by step, since the i-th steps have batches of the same shape
        return pairs.ratio(list(chain(*ms[a][:shared])), list(chain(*ms[b][:shared])))

    aims = [(a, b, limit) for a, b, limit in AIMS[name] if a in ms and b in ms]
    return {
        "median_ms": {which: statistics.median(chain(*passes)) for which, passes in ms.items()},
        "drift": {w: statistics.median(p[1]) / statistics.median(p[0]) for w, p in ms.items() if len(p) > 1},
        "ratios": {f"{a} / {b}": ratio(a, b) for b in BASELINES if b in ms for a in ms if a != b},
        "aims": {
            f"{a} / {b}": {"at_most": limit, **(r := ratio(a, b)), "met": r["median"] <= limit} for a, b, limit in aims
        },
        "losses": compare(case, steps),
    }


def failures(found: Mapping[str, Any]) -> list[str]:
    """One sentence per error, synchronisation and failed comparison."""
    passes = [(name, p) for name, passes in found["steps"].items() for p in passes]
    return [
        *(f"{name}: {p['error']}" for name, p in passes if "error" in p),
        *(f"{name}: would wait for the device inside a graph ({s})" for name, p in passes for s in p.get("syncs", ())),
        *(
            f"{pair}: losses differ by up to {c['difference']:.1e}, and weights are {_same(c)}"
            for pair, c in found.get("losses", {}).items()
            if not c["passed"]
        ),
    ]


def bench(
    name: str,
    case: Case,
    options: argparse.Namespace,
    in_time: Callable[[], bool],
    save: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Measure all contenders of one case in two passes; calls save(findings) after each contender."""
    cuda = options.device == "cuda"
    base, linears = classifier(*case.model, case.dtype, options.device)
    without_dropout(base)
    batches = batches_of(case, options.device)
    steps: dict[str, list[dict[str, Any]]] = {}
    skipped: list[str] = []
    found: dict[str, Any] = {"steps": steps, "skipped": skipped}
    for turn, order in enumerate((options.contenders, options.contenders[::-1])):
        for which in order:
            if not in_time():
                skipped.append(f"{which}, pass {turn + 1}")
                continue
            try:
                result = measure(which, case, base, linears, batches, options.steps, cuda)
            except Exception as error:  # if one contender fails, the others are still measured
                result = {"error": f"{type(error).__name__}: {error}"[:500]}
            if cuda:
                gc.collect()  # a controller and its hooks refer to each other
                torch.cuda.empty_cache()
            steps.setdefault(which, []).append(result)
            found |= summary(name, case, steps)
            print(f"{name} {which}: {_line(result)}", flush=True)
            save(found)
    save(found)
    return found


def _same(comparison: Mapping[str, Any]) -> str:
    return "the same" if comparison["same_weights"] else "not the same"


def _line(result: Mapping[str, Any]) -> str:
    if "error" in result:
        return str(result["error"])
    shown = {"median_ms": statistics.median(result["ms"]), **result}
    return ", ".join(f"{key} {value:.4g}" for key, value in shown.items() if isinstance(value, (int, float)))


def main() -> int:
    began = time.perf_counter()
    parser = pairs.parser(__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="models of two layers and short rows")
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=list(CASES))
    parser.add_argument("--contenders", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--steps", type=int, help="timed steps per contender and pass (20, with --tiny 3)")
    parser.add_argument("--budget", type=float, default=400, help="seconds after which no further contender starts")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU; to try the script without one, add --device cpu --tiny")
    if options.device == "cpu" and not options.tiny:
        parser.error("--device cpu needs --tiny: it only tests the script, and its times are meaningless")
    options.steps = options.steps or (3 if options.tiny else 20)
    settings = {key: getattr(options, key) for key in ("device", "tiny", "steps", "budget")}
    report: dict[str, Any] = {"machine": pairs.machine(), **settings, "cases": {}}

    def save(name: str, found: Mapping[str, Any]) -> None:
        report["cases"][name] = found
        report["seconds"] = time.perf_counter() - began
        if options.json:
            write_json(options.json, report)

    problems = []
    for name in options.cases:
        case = tiny(CASES[name]) if options.tiny else CASES[name]
        found = bench(name, case, options, lambda: time.perf_counter() - began < options.budget, partial(save, name))
        problems += [f"{name}, {problem}" for problem in failures(found)]
        show(name, found, aims=options.device == "cuda")
    for problem in problems:
        print(problem)
    return 1 if problems else 0


def tiny(case: Case) -> Case:
    """`case` at a size that takes a CPU a fraction of a second."""
    return replace(case, model=(case.model[0], 2, 128, 200), rows=2, lengths=tuple(n // 8 for n in case.lengths))


def show(name: str, found: Mapping[str, Any], aims: bool) -> None:
    print(name)
    for pair, aim in found.get("aims", {}).items() if aims else ():
        interval = f"[{aim['low']:.3f}, {aim['high']:.3f}]"
        print(
            f"  {pair:48s} {aim['median']:.3f} {interval}, at most {aim['at_most']}: "
            f"{'met' if aim['met'] else 'missed'}"
        )
    for pair, check in found.get("losses", {}).items():
        print(f"  {pair:52s} losses differ by up to {check['difference']:.1e}, weights are {_same(check)}")
    if found["skipped"]:
        print(f"  skipped for lack of time: {'; '.join(found['skipped'])}")


if __name__ == "__main__":
    sys.exit(main())
