"""The cost of an adapter at inference: base, merged, unmerged LoRA, bottlenecks (as in the LoRA paper's Table 1).

    python experiments/bench/inference.py --json experiments/results/inference_cpu.json
    python experiments/bench/inference.py --models encoder_6x384 --batches 1x32 --rounds 5 --json /tmp/quick.json

Every round runs one forward pass of each contender on the same batch; a ratio is the median of the rounds' ratios to
the base, with its 95 % interval. `base_again` is a second copy of the base; the deviation of its ratio from 1 is the
noise. The bottlenecks have as many parameters as LoRA at r = 12. On the CPU the time is the process's own (one thread
unless --threads), and on CUDA it is measured with events.
"""

import argparse
import sys
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import nn

import adarank
from experiments.bench.pairs import interleave, ratio, write
from experiments.bench.workload import DTYPES, RANK, batch, build, parser, timed

CONTENDERS = ("base", "base_again", "merged", "lora", "adalora", "pfeiffer", "houlsby")


def contender(which: str, base: nn.Module, name: str, linears: str) -> nn.Module:
    """One of CONTENDERS over its own copy of `base`, with non-zero factors as after training."""
    model = deepcopy(base)
    if which in ("houlsby", "pfeiffer"):
        adarank.bottlenecks(model, which, RANK, linears, norms=False)
    elif which in ("merged", "lora", "adalora"):
        adarank.adapt(model, "svd" if which == "adalora" else "lora", rank=RANK, targets=linears)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and which not in ("base", "base_again"):
                parameter.add_(0.02 * torch.randn_like(parameter))
    if which == "merged":
        adarank.merge(model)
    return model.requires_grad_(False).eval()


def bench(name: str, rows: int, tokens: int, options: argparse.Namespace) -> dict[str, Any]:
    """The milliseconds of every contender and its ratio to the base, on batches of rows × tokens."""
    base, linears = build(name, DTYPES[options.dtype], options.device)
    inputs = {"input_ids": batch(name, rows, tokens, options.device)["input_ids"]}
    models = {which: contender(which, base, name, linears) for which in CONTENDERS}
    work = {which: partial(timed, partial(model, **inputs), options.device) for which, model in models.items()}
    with torch.inference_mode():
        seconds = interleave(work, options.rounds, 3)
    return {
        "batch": [rows, tokens],
        "rounds": options.rounds,
        "median_ms": {which: 1000 * sorted(s)[len(s) // 2] for which, s in seconds.items()},
        "ratios": {f"{which} / base": ratio(s, seconds["base"]) for which, s in seconds.items() if which != "base"},
    }


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument(
        "--batches",
        nargs="+",
        type=lambda text: tuple(map(int, text.split("x"))),
        default=[(1, 128), (16, 64)],
        metavar="ROWSxTOKENS",
        help="batches as ROWSxTOKENS, such as 1x128 16x64",
    )
    arguments.add_argument("--rounds", type=int, default=60)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    found: dict[str, list[dict[str, Any]]] = {}
    for name in options.models:
        found[name] = [bench(name, rows, tokens, options) for rows, tokens in options.batches]
        for result in found[name]:
            print(f"{name}, {result['batch'][0]} × {result['batch'][1]}: base {result['median_ms']['base']:.2f} ms")
            for pair, value in result["ratios"].items():
                print(f"  {pair:20s} {value['median']:.3f}  [{value['low']:.3f}, {value['high']:.3f}]")
    write(options, ("device", "dtype", "threads"), models=found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
