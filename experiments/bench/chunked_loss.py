"""Memory and time of a causal language model's loss, with whole logits and with logits in chunks of tokens.

    python experiments/bench/chunked_loss.py --json experiments/results/chunked_loss_cpu.json

It runs one forward and backward pass of a small random Llama with a large vocabulary, each case in a separate process:
vocabulary × tokens × a head that is trained (full fine-tuning) or frozen (LoRA). It reports the peak memory above that
before the pass (resident memory, or allocated memory on a CUDA device), the median time of further passes, and the
loss.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

LENGTH = 128  # tokens per row


def resident_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def measure(vocabulary: int, tokens: int, head: str, chunked: bool, options: argparse.Namespace) -> dict[str, Any]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import adarank
    from adarank.harness.data.losses import enable_chunks
    from adarank.harness.data.task_types import generate
    from adarank.harness.device import clock, peak_mib, reset_peak

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=options.width, intermediate_size=2 * options.width, num_hidden_layers=2,
        num_attention_heads=options.width // 32, num_key_value_heads=options.width // 32,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    if head == "frozen":
        adarank.adapt(model, "lora", rank=8, targets=["q_proj", "v_proj"])
    model.to(device)
    if chunked:
        enable_chunks(model)
    ids = torch.randint(vocabulary, (tokens // LENGTH, LENGTH), device=device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}

    def step(batch: dict[str, torch.Tensor]) -> float:
        loss = generate.loss(model, batch)
        loss.backward()
        return loss.item()

    step({name: tensor[:1, :2] for name, tensor in batch.items()})  # allocates the gradients
    before = torch.cuda.memory_allocated() / 2**20 if device.type == "cuda" else resident_mib()
    reset_peak(device)
    loss = step(batch)
    peak = (peak_mib(device) or 0.0) - before
    seconds = []
    for _ in range(options.rounds):
        started = clock(device)
        step(batch)
        seconds.append(clock(device) - started)
    return {
        "vocabulary": vocabulary,
        "tokens": tokens,
        "head": head,
        "loss": "in chunks" if chunked else "whole",
        "logits_mib": round(vocabulary * tokens * 4 / 2**20),
        "peak_mib": round(peak),
        "seconds": round(statistics.median(seconds), 2),
        "value": loss,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[32_768, 131_072])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", help=argparse.SUPPRESS)  # one case, in a separate process
    options = parser.parse_args()
    if options.case:
        vocabulary, tokens, head, chunked = json.loads(options.case)
        print(json.dumps(measure(vocabulary, tokens, head, chunked, options)))
        return
    cases = [
        (vocabulary, tokens, head, chunked)
        for vocabulary in options.vocabularies
        for tokens in options.tokens
        for head in ("frozen", "trained")
        for chunked in (False, True)
    ]
    found = []
    for case in cases:
        command = [sys.executable, __file__, *sys.argv[1:], "--case", json.dumps(case)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found.append(json.loads(done.stdout))
        print(done.stdout, end="", flush=True)
    if options.json:
        import torch

        from adarank.harness.device import device_name
        from adarank.harness.run.identity import provenance

        torch.set_num_threads(options.threads)
        about = {"device": device_name(torch.device(options.device)), "width": options.width, **provenance()}
        options.json.write_text(json.dumps({**about, "cases": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
