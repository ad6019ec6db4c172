"""The time of an optimiser step over the same rows, as one padded pass and split by length into several.

    python experiments/bench/microbatches.py --data FOLDER --json experiments/results/microbatches_cpu.json
    python experiments/bench/microbatches.py --fit

It trains on rows of rotten_tomatoes and, with --data, of GLUE tasks (SST-2, CoLA, RTE), in the order of a run, with
AdaLoRA on all linears of MiniLM. Every round trains the same rows in 1, 2 and 3 passes and in the number that
train.microbatches=auto chooses; a ratio is the time of a step divided by that of the single pass in the same round.
--fit measures the fixed cost of a pass of a random BERT, the source of the constants in
adarank/harness/run/microbatches.py: seconds = a + b · tokens over batches of several shapes, by least squares of the
relative error.
"""

import argparse
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
import transformers
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

import adarank
from adarank.harness.config.compose import spec_from
from adarank.harness.data.batches import training_order
from adarank.harness.data.task_types import classify
from adarank.harness.device import autocast, clock
from adarank.harness.run.microbatches import local_passes, pass_overhead
from adarank.harness.run.prepare import make_optimizer, prepare
from adarank.harness.run.resolve import build, chosen_targets, load_base, load_task
from experiments.bench import pairs

PASSES: tuple[int | str, ...] = (1, 2, 3, "auto")
GLUE = {"sst2": 16, "cola": 16, "rte": 16}  # {task: rows per step}
SIZES = ((64, 2), (128, 4), (384, 6), (768, 4))  # width, layers
SHAPES = ((1, 16), (2, 16), (4, 16), (8, 16), (8, 32), (16, 32), (16, 48), (24, 32))  # rows, tokens per row


def main() -> None:
    parser = pairs.parser(__doc__)
    parser.add_argument("--data", type=Path, help="the folder of the GLUE tasks")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--fit", action="store_true", help="fit the fixed cost of a pass instead")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    names = ("precision", "device", "rounds")
    if options.fit:
        pairs.write(options, names, fits=[fit(width, layers, options) for width, layers in SIZES])
        return
    cases = [["task=rotten_tomatoes", "task.max_length=48", "train.batch_size=24"]]
    if options.data:
        cases += [[f"task={t}", f"task.path={options.data}", f"train.batch_size={rows}"] for t, rows in GLUE.items()]
    pairs.write(options, names, model="minilm_l6", cases=[compare(words, options) for words in cases])


def compare(words: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """A task's steps with each of PASSES: median ms, ratios to a single pass, tokens with padding, number of passes."""
    device = torch.device(options.device)
    spec = spec_from([*words, "model=minilm_l6", "method=adalora", f"train.precision={options.precision}"])
    task, base = load_task(spec), load_base(spec)
    built = build(spec, task, base, device)
    rows = classify.encode(task, "train", built.tokenizer)
    prepared = prepare(built, chosen_targets(spec, task, base), spec, device)
    model, controller = prepared.model.train(), prepared.controller
    assert controller is not None
    optimizer = make_optimizer(model, prepared.adapters, spec.train)
    controller.attach(optimizer)
    overhead = pass_overhead(model, device, options.precision)
    batches = list(zip(training_order(len(rows), spec.train.batch_size, 0), range(options.rounds + 1), strict=False))
    turn = dict.fromkeys(PASSES, 0)
    tokens: dict[int | str, list[int]] = {passes: [] for passes in PASSES}
    counts: dict[int | str, list[int]] = {passes: [] for passes in PASSES}

    def step(passes: int | str) -> float:
        numbers = batches[turn[passes]][0]
        turn[passes] += 1
        started = clock(device)
        divided = local_passes(numbers, rows.lengths, passes, overhead)
        for own in divided:
            with autocast(options.precision, device):
                loss = classify.loss(model, classify.collate(rows, own, device))
            (loss * len(own) / len(numbers)).backward()
        controller.after_backward()
        clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds = clock(device) - started
        tokens[passes].append(sum(len(own) * int(rows.lengths[own].max()) for own in divided))
        counts[passes].append(len(divided))
        return seconds

    found = pairs.interleave({str(passes): partial(step, passes) for passes in PASSES}, options.rounds, 1)
    result = {
        "task": task.name,
        "rows": spec.train.batch_size,
        "overhead_tokens": round(overhead, 1),
        "tokens": {str(p): round(float(np.mean(tokens[p]))) for p in PASSES},
        "passes": {str(p): round(float(np.mean(counts[p])), 2) for p in PASSES},
        "ms": {p: round(1000 * statistics.median(seconds), 1) for p, seconds in found.items()},
        "ratio": {p: pairs.ratio(seconds, found["1"]) for p, seconds in found.items() if p != "1"},
    }
    print(result, flush=True)
    return result


def fit(width: int, layers: int, options: argparse.Namespace) -> dict[str, float]:
    """The cost of a pass of one model: fixed ms, ms per token, and their ratio, in tokens."""
    torch.manual_seed(0)
    device = torch.device(options.device)
    config = transformers.BertConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 32, intermediate_size=4 * width,
        vocab_size=1000,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).to(device).train()
    adarank.adapt(model, "svd", rank=12, targets="all-linear", train=["classifier"])

    def step(rows: int, length: int) -> float:
        ids, labels = torch.randint(1000, (rows, length), device=device), torch.zeros(rows, dtype=torch.long).to(device)
        started = clock(device)
        with autocast(options.precision, device):
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        F.cross_entropy(logits.float(), labels).backward()
        return clock(device) - started

    measure = {f"{rows}x{length}": partial(step, rows, length) for rows, length in SHAPES}
    seconds = np.array([statistics.median(s) for s in pairs.interleave(measure, options.rounds, 1).values()])
    tokens = np.array([rows * length for rows, length in SHAPES])
    relative = np.stack([np.ones(len(tokens)), tokens], 1) / seconds[:, None]
    fixed, token = np.linalg.lstsq(relative, np.ones(len(tokens)), rcond=None)[0]
    result = {
        "width": width,
        "layers": layers,
        "pass_ms": 1000 * fixed,
        "token_ms": 1000 * token,
        "overhead_tokens": fixed / token,
        "used": pass_overhead(model, device, options.precision),
    }
    print({name: round(float(value), 3) for name, value in result.items()}, flush=True)
    return {name: float(value) for name, value in result.items()}


if __name__ == "__main__":
    main()
