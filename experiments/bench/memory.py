"""Counts the memory of one training step: tensors saved by autograd, factors, gradients, optimiser state and averages.

    python experiments/bench/memory.py --json experiments/results/memory_cpu.json

`saved` is the number of bytes in distinct storages that the forward pass keeps for the backward pass, excluding
parameters, which is the same on every machine. `state` is the number of bytes of trained parameters, gradients,
optimiser state and score averages, before and after compaction to mean rank 8. On CUDA the allocator's peak over a step
is added.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor

from adarank.optimizers import CONTROLLER
from experiments.bench.pairs import write
from experiments.bench.workload import CONTENDERS, DTYPES, Contender, batch, build, contender, parser


def saved_bytes(work: Contender, inputs: dict[str, Tensor]) -> int:
    """Bytes of distinct storages that one forward pass saves, without the model's parameters and buffers."""
    known = {t.untyped_storage().data_ptr() for t in (*work.model.parameters(), *work.model.buffers())}
    kept: dict[int, int] = {}
    alive = []  # keeps saved tensors alive, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = work.model(**inputs).loss
    del loss
    return sum(kept.values())


def state_bytes(work: Contender) -> int:
    """Bytes of trained parameters, their gradients, the optimiser's state and the controller's averages."""
    trained = [p for group in work.optimizer.param_groups for p in group["params"]]
    state = [t for s in work.optimizer.state.values() for t in s.values() if t.numel() > 1]
    controller = getattr(work.optimizer, CONTROLLER, None)
    buffers = controller.buffers.values() if controller is not None else _peft_averages(work)
    return sum(t.numel() * t.element_size() for t in (*trained, *trained, *state, *buffers))


def _peft_averages(work: Contender) -> list[Tensor]:
    allocator = getattr(getattr(work.model, "base_model", None), "rankallocator", None)
    names = ("ipt", "exp_avg_ipt", "exp_avg_unc")
    return [t for name in names for t in getattr(allocator, name, {}).values()] if allocator is not None else []


def measure(which: str, name: str, options: argparse.Namespace) -> dict[str, Any]:
    base, linears = build(name, DTYPES[options.dtype], options.device)
    inputs = batch(name, options.rows, options.tokens, options.device)
    work = contender(which, base, linears, inputs)
    del base
    work.step()
    found: dict[str, Any] = {"saved": saved_bytes(work, inputs), "state": state_bytes(work)}
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        work.step()
        found["peak"] = torch.cuda.max_memory_allocated()
    return found


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--rows", type=int, default=8)
    arguments.add_argument("--tokens", type=int, default=64)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    found: dict[str, Any] = {}
    for name in options.models:
        sizes = {which: measure(which, name, options) for which in CONTENDERS}
        base = sizes["peft_lora"]
        ratios = {w: {k: v / base[k] for k, v in s.items()} for w, s in sizes.items()}
        found[name] = {"bytes": sizes, "ratio_to_peft_lora": ratios}
        print(name)
        for which, size in sizes.items():
            cells = [f"{key} {value / 2**20:8.1f} MiB ({ratios[which][key]:.3f})" for key, value in size.items()]
            print(f"  {which:18s} " + "  ".join(cells))
    write(options, ("device", "dtype", "rows", "tokens"), models=found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
