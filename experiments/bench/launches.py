"""Kernel launches of one optimiser step, by part: the frozen base, PEFT LoRA, our LoRA and AdaLoRA, eager and captured.

    python experiments/bench/launches.py --json experiments/results/launches.json

It counts rather than times, because a GPU step of this size waits for its launches, whose number can be counted on a
CPU. A launch is a dispatched aten operation that is neither a view nor an allocation; the CUDA kernels behind a
multi-tensor operation, and behind a few others, are counted as in CUDA (`launches`). The models are narrow, because the
count does not depend on their width. AdaLoRA observes, allocates and masks in every step; a step "between allocations"
is one in which no allocation is due.

"captured" counts the step of `adarank.capture` as it runs without graphs; a replay launches the same kernels with one
call per graph. Its "feed" is the work that the bank does for the adapters once per step. The base's forward and
backward are those of the frozen model, and a contender's further launches count as its adapters', less the few launches
that an adapted first block saves because its input needs no gradient. Copies of a batch into a graph's memory are
excluded.

`profiled` compares the same count with the kernels in a profile on an H100 (experiments/results/step_h100.json: steps
without clipping, the decoder at its full width, other versions of torch, Transformers and PEFT, and four more launches
in AdaLoRA's penalty). The remainder cannot be seen from a CPU, such as the second kernel of a matrix product whose long
side is split.
"""

import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from adarank.optimizers import CONTROLLER
from experiments.bench import pairs
from experiments.bench.tape import ALLOCATES, name_of
from experiments.bench.training_step import training_step
from experiments.bench.workload import CONTENDERS, Contender, classifier, contender

MODELS: dict[str, tuple[str, int, torch.dtype, torch.dtype | None]] = {  # (architecture, layers, dtype, autocast)
    "decoder": ("llama", 22, torch.bfloat16, None),
    "encoder": ("bert", 6, torch.float32, torch.bfloat16),
}
WIDTH, VOCABULARY, ROWS, TOKENS = 128, 256, 2, 8
OURS = ("lora", "adalora", "adalora_compacted")
STEPS: tuple[str, ...] = ("floor", "peft_lora", *OURS, *(f"{which}+captured" for which in OURS))
RATIOS = (
    ("adalora+captured", "peft_lora"),
    ("adalora+captured", "lora+captured"),
    ("adalora+captured between allocations", "lora+captured"),
    ("adalora_compacted+captured", "peft_lora"),
    ("adalora_compacted+captured", "adalora+captured"),
    ("adalora", "peft_lora"),
    ("adalora", "lora"),
)
COMPARED = [which for which in CONTENDERS if which != "adalora_compacted"]  # its penalty had one block per rank then
PROFILED = Path(__file__).resolve().parents[1] / "results" / "step_h100.json"

FREE = ALLOCATES | {"_unsafe_view", "is_same_size", "set_"}
TENSORS = {
    1: 110,
    2: 64,
    3: 48,
    4: 36,
}  # of a multi-tensor kernel, by its number of tensor lists (MultiTensorApply.cuh)
KERNELS = {  # the number of CUDA kernels behind an operation, if it is not 1
    "native_layer_norm_backward": 2,
    "embedding_dense_backward": 4,
    "sort": 4,
    "argsort": 4,
    "cumsum": 2,
    "nonzero": 4,
    "index_put_": 2,
    "_scaled_dot_product_flash_attention_for_cpu_backward": 3,
}


def launches(operation: Any, arguments: Sequence[Any]) -> int:
    """The number of CUDA kernels that an aten operation launches: 0 for a view or an allocation."""
    name = name_of(operation)
    if operation.is_view or name in FREE or operation.namespace == "profiler":
        return 0
    if not name.startswith(("_foreach", "_fused")):
        return KERNELS.get(name, 1)
    lists = [a for a in arguments if isinstance(a, (list, tuple)) and a and isinstance(a[0], Tensor)]
    depth = 4 if name.startswith("_fused") else len(lists)  # its step counters are separate from the lists
    return math.ceil(len(lists[0]) / TENSORS[depth]) + (name == "_foreach_norm")


class LaunchCounter(TorchDispatchMode):
    """Counts the launches inside `with counter:`. found: {part: launches}; a part begins with `mark`ed functions."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self._parts = ["feed"]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found[self._parts[-1]] += launches(func, args)
        return func(*args, **(kwargs or {}))

    @contextmanager
    def mark(self, part: str, owner: Any, name: str) -> Iterator[None]:
        """Inside the `with`, launches from `owner.name` belong to `part`."""
        function = getattr(owner, name)

        def marked(*arguments: Any, **options: Any) -> Any:
            self._parts.append(part)
            try:
                return function(*arguments, **options)
            finally:
                self._parts.pop()

        with patch.object(owner, name, marked):
            yield


def parts_of(work: Contender) -> list[tuple[str, Any, str]]:
    """(part, owner, name) of the functions that make up a step; the innermost one counts."""
    parts = [
        ("forward", work.model, "forward"),
        ("backward", Tensor, "backward"),
        ("clip", nn.utils, "clip_grad_norm_"),
        ("optimiser", work.optimizer, "step"),
    ]
    controller = getattr(work.optimizer, CONTROLLER, None)
    if controller is not None:
        parts += [
            ("penalty", controller, "after_backward"),
            ("gradient views", controller.bank, "sync_views"),
            ("observe", controller, "_observe"),
            ("allocate", controller, "_allocate"),
            ("allocate", controller.bank, "zero_pruned"),
        ]
    return parts


def count(step: Callable[[], object], parts: Sequence[tuple[str, Any, str]] = ()) -> Counter[str]:
    """Launches of one `step` by part, after two uncounted steps."""
    counter = LaunchCounter()
    with ExitStack() as stack:
        for part, owner, name in parts:
            stack.enter_context(counter.mark(part, owner, name))
        for _ in range(2):
            step()
        with counter:
            step()
    return counter.found


def inputs(kind: str) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(1, VOCABULARY, (ROWS, TOKENS), generator=draw)
    return {"input_ids": ids, "labels": torch.randint(0, 2, (ROWS,), generator=draw)}


def bench(kind: str, layers: int, dtype: torch.dtype, autocast: torch.dtype | None) -> dict[str, Any]:
    """Launches of every contender on one model, by part, and the ratios of their sums."""
    base, linears = classifier(kind, layers, WIDTH, VOCABULARY, dtype)
    batch = inputs(kind)
    found: dict[str, Counter[str]] = {}
    for name in STEPS:
        which, _, form = name.partition("+")
        work = contender(which, base, linears, batch)
        step = training_step(work, "fed" if form else "eager", autocast)
        counted = count(partial(step, batch), parts_of(work))
        for part in ("forward", "backward"):
            whole = counted.pop(part)
            counted[f"base {part}"] = found["floor"][f"base {part}"] if found else whole
            counted[f"adapters {part}"] = whole - counted[f"base {part}"]
        found[name] = counted
    totals = {name: counted.total() for name, counted in found.items()}
    totals |= {
        f"{name} between allocations": totals[name] - c["allocate"] for name, c in found.items() if c["allocate"]
    }
    return {
        "layers": layers,
        "launches": totals,
        "parts": {name: dict(sorted(counted.items())) for name, counted in found.items()},
        "ratios": {f"{a} / {b}": totals[a] / totals[b] for a, b in RATIOS if a in totals and b in totals},
    }


def profiled() -> dict[str, dict[str, float]]:
    """The count for the steps profiled on an H100, next to the profiler's number of kernels."""
    kernels = json.loads(PROFILED.read_text())["models"]["decoder_1b"]["kernels"]
    kind, layers, dtype, _ = MODELS["decoder"]
    base, linears = classifier(kind, layers, WIDTH, VOCABULARY, dtype)
    found = {}
    for which in COMPARED:
        counted = count(contender(which, base, linears, inputs(kind)).step).total()
        found[which] = {"counted": counted, "profiled": kernels[which], "ratio": counted / kernels[which]}
    return found


def show(name: str, found: dict[str, Any]) -> None:
    parts = sorted({part for counted in found["parts"].values() for part in counted})
    print(f"{name}, {found['layers']} layers")
    for step, total in found["launches"].items():
        of_step = found["parts"].get(step, {})
        cells = ", ".join(f"{part} {of_step[part]}" for part in parts if of_step.get(part))
        print(f"  {step:48s} {total:6d}   {cells}")
    for pair, value in found["ratios"].items():
        print(f"  {pair:56s} {value:.3f}")


def main() -> int:
    options = pairs.parser(__doc__).parse_args()
    torch.set_num_threads(1)
    found = {}
    for name, model in MODELS.items():
        found[name] = bench(*model)
        show(name, found[name])
    check = profiled()
    for which, value in check.items():
        print(f"  {which:28s} counted {value['counted']}, profiled {value['profiled']}: {value['ratio']:.2f}")
    pairs.write(options, (), width=WIDTH, models=found, profiled=check)
    return 0


if __name__ == "__main__":
    sys.exit(main())
