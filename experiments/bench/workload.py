"""The workloads of the benchmarks: models with random weights, and one training step of every contender."""

import argparse
import re
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import nn

import adarank
from adarank.controller import RankController
from adarank.optimizers import CONTROLLER
from experiments.bench import pairs

RANK, FINAL = 12, 8
LONG = 10**4  # steps of a schedule that no benchmark completes
MODELS = {  # name: (architecture, layers, width, vocabulary)
    "encoder_6x384": ("bert", 6, 384, 2000),
    "encoder_12x768": ("bert", 12, 768, 2000),
    "decoder_6x384": ("llama", 6, 384, 2000),
    "decoder_1b": ("llama", 22, 2048, 32000),
}
LINEARS = {
    "bert": r".*\.layer\.\d+\.(attention\.self\.(query|key|value)|attention\.output\.dense|intermediate\.dense|"
    r"output\.dense)",
    "llama": r".*\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)",
}
CONTENDERS = ("floor", "peft_lora", "peft_adalora", "lora", "adalora", "adalora_compacted", "full")


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def parser(description: str | None) -> argparse.ArgumentParser:
    """The parser for a benchmark of MODELS, with their common options."""
    options = pairs.parser(description)
    options.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS)[:3])
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    return options


@dataclass
class Contender:
    """A model with its training step."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: Callable[[], None]


def timed(work: Callable[[], object], device: str) -> float:
    """The seconds of one call: process time on the CPU, or CUDA events after waiting for the GPU."""
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


def build(name: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[nn.Module, str]:
    """(a two-class classifier with random weights, the pattern of its blocks' linears)."""
    return classifier(*MODELS[name], dtype, device)


def classifier(
    kind: str, layers: int, width: int, vocabulary: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[nn.Module, str]:
    """Like `build`, for an architecture and a size without a name."""
    import transformers

    config = transformers.AutoConfig.for_model(
        kind,
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        intermediate_size=4 * width if kind == "bert" else 8 * width // 3 // 64 * 64,
        num_labels=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa")
    return model.to(dtype).train(), LINEARS[kind]


def batch(name: str, rows: int, tokens: int, device: str) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(1, MODELS[name][3], (rows, tokens), generator=draw).to(device)
    return {"input_ids": ids, "labels": torch.randint(0, 2, (rows,), generator=draw).to(device)}


def head_of(model: nn.Module) -> list[str]:
    children = model.named_children()
    return [name for name, child in children if child is not model.base_model and any(True for _ in child.parameters())]


def optimiser(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)


def contender(
    which: str,
    base: nn.Module,
    linears: str,
    inputs: dict[str, torch.Tensor],
    wrap: Callable[[nn.Module], Any] = lambda m: m,
) -> Contender:
    """One of CONTENDERS over its own copy of `base`. Every one also trains the head; `wrap` (torch.compile, say) is
    applied to the finished model. The adaptive ones are in the middle of their allocation phase and mask in every
    step."""
    model: Any = deepcopy(base)
    if which == "full":
        return _plain(model, inputs, wrap)
    if which == "floor":
        adarank.head(model, head_of(model))
        model.enable_input_require_grads()  # so that the backward pass runs through every block
        return _plain(model, inputs, wrap)
    if which in ("peft_lora", "peft_adalora"):
        return _peft(which, model, linears, inputs, wrap)
    adapters = adarank.adapt(
        model, "lora" if which == "lora" else "svd", rank=RANK, targets=linears, train=head_of(model)
    )
    if which == "lora":
        return _plain(model, inputs, wrap)
    controller = _Timed(
        adapters,
        score=adarank.scores.adalora(),
        schedule=adarank.schedules.cubic(RANK * len(adapters), FINAL * len(adapters), 0, 2, LONG, 1),
        penalty=adarank.penalties.orthogonality(0.1),
    )
    optimizer = optimiser(model)
    controller.attach(optimizer)
    with torch.no_grad():
        controller.bank.lam.normal_(0, 0.02)
    if which == "adalora_compacted":
        _prune_to_final(controller)
        adarank.compact(model, optimizer)
        # a constant budget leaves nothing to allocate, as in the last phase of a run
        controller.schedule = adarank.schedules.cubic(FINAL * len(adapters), FINAL * len(adapters), 0, LONG - 1, LONG)
    run = wrap(model)

    def step() -> None:
        run(**inputs).loss.backward()
        controller.after_backward()
        optimizer.step()
        optimizer.zero_grad()

    return Contender(model, optimizer, step)


def products(base: nn.Module, linears: str, n: int, rank: int) -> Callable[[], None]:
    """Only the six thin products of every wrapped linear over n tokens, forward and backward: the least work that a
    low-rank adapter with gradients of Q, λ and P adds to the frozen model, in the fastest layout."""
    sizes = [m.weight for name, m in base.named_modules() if re.fullmatch(linears, name) and isinstance(m, nn.Linear)]
    work = []
    for weight in sizes:
        d_out, d_in = weight.shape
        shapes = [(n, d_in), (n, d_out), (rank, d_in), (rank, d_out)]
        work.append([torch.randn(s, device=weight.device, dtype=weight.dtype) for s in shapes])

    @torch.no_grad()
    def run() -> None:
        for x, g, Q, P in work:
            h = Q @ x.t()
            g.addmm_(h.t(), P, alpha=1e-8)  # into an existing tensor, as into the base's output in the forward pass
            u = P @ g.t()
            x.addmm_(u.t(), Q, alpha=1e-8)
            u @ x
            h @ g

    return run


class _Timed(RankController):
    """A controller that adds up its own time in `seconds`, if that is not None: the entire overhead of an adaptive run
    over fixed-rank LoRA's step. Timing waits for a GPU, so `seconds` is None in steps that are themselves timed."""

    seconds: dict[str, float] | None = None

    def after_backward(self, grad_scale: Any = None) -> None:
        self._timed("penalty", partial(super().after_backward, grad_scale))

    def _after_step(self, *arguments: Any) -> None:
        self._timed("allocator", partial(super()._after_step, *arguments))

    def _timed(self, part: str, work: Callable[[], None]) -> None:
        if self.seconds is None:
            work()
        else:
            self.seconds[part] += timed(work, self.bank.weight.device.type)


def controller_seconds(work: Contender, steps: int) -> dict[str, float]:
    """The seconds per step of penalty and allocator in further steps of an adaptive contender; {} for the others."""
    controller = getattr(work.optimizer, CONTROLLER, None)
    if controller is None:
        return {}
    controller.seconds = {"penalty": 0.0, "allocator": 0.0}
    for _ in range(steps):
        work.step()
    found, controller.seconds = controller.seconds, None
    return {part: seconds / steps for part, seconds in found.items()}


def _prune_to_final(controller: RankController) -> None:
    """A mask with mean rank FINAL and uneven ranks, as in a finished run."""
    draw = torch.Generator().manual_seed(2)
    scores = torch.rand(controller.bank.triplets, generator=draw).to(controller.bank.mask.device)
    keep = scores.argsort(descending=True)[: FINAL * len(controller.bank.names)]
    controller.bank.mask.zero_()
    controller.bank.mask[keep] = True
    controller.bank.zero_pruned()


def _plain(
    model: nn.Module,
    inputs: dict[str, torch.Tensor],
    wrap: Callable[[nn.Module], Any],
    allocate: Callable[[], None] = lambda: None,
) -> Contender:
    """`model`, trained with AdamW; allocate: called after the optimiser's step."""
    optimizer, run = optimiser(model), wrap(model)

    def step() -> None:
        run(**inputs).loss.backward()
        optimizer.step()
        allocate()
        optimizer.zero_grad()

    return Contender(model, optimizer, step)


def _peft(
    which: str, model: nn.Module, linears: str, inputs: dict[str, torch.Tensor], wrap: Callable[[nn.Module], Any]
) -> Contender:
    import peft

    common: dict[str, Any] = {"target_modules": linears, "lora_alpha": 2 * RANK, "modules_to_save": head_of(model)}
    if which == "peft_lora":
        return _plain(peft.get_peft_model(model, peft.LoraConfig(r=RANK, **common)), inputs, wrap)
    config = peft.AdaLoraConfig(
        init_r=RANK, target_r=FINAL, tinit=0, tfinal=2, deltaT=1, total_step=LONG, orth_reg_weight=0.1, **common
    )
    adapted = peft.get_peft_model(model, config)
    steps = count(1)
    return _plain(adapted, inputs, wrap, lambda: adapted.base_model.update_and_allocate(next(steps)))
