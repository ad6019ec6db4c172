"""The time of a forward and backward pass over rows of different lengths, padded and packed.

    python experiments/bench/packing.py --json experiments/results/packing_cpu.json

It uses a random Llama and one batch of random tokens with log-normal row lengths, which are typical of instructions.
The passes alternate. It reports the number of tokens computed, the median seconds of each pass, the loss, and the time
for packing and for the check before training.
"""

import argparse
import json
import statistics
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM

from adarank.harness.data.packing import pack, way_to_pack
from adarank.harness.data.task_types import generate
from adarank.harness.device import clock, device_name
from adarank.harness.run.identity import provenance
from experiments.bench.pairs import interleave, ratio

VOCABULARY = 2048
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device, heads = torch.device(options.device), options.width // 32
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=options.width, intermediate_size=2 * options.width,
        num_hidden_layers=options.layers, num_attention_heads=heads, num_key_value_heads=heads,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(device)
    lengths = np.minimum(512, np.random.default_rng(0).lognormal(4.5, 0.8, options.rows).astype(int) + 8)
    rows = [torch.randint(VOCABULARY, (int(n),)) for n in lengths]
    padded = {
        "input_ids": pad_sequence(rows, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
        "labels": pad_sequence(rows, batch_first=True, padding_value=-100),
    }
    started = clock(device)
    way = way_to_pack(model, int(lengths.max()), "fp32", device)
    check = clock(device) - started
    assert way is not None, "a Llama keeps packed rows apart"

    def batch(how: str) -> dict[str, torch.Tensor]:
        if how == "packed":
            return pack(model, padded, way, "fp32", device)
        return {name: tensor.to(device) for name, tensor in padded.items()}

    losses: dict[str, float] = {}

    def seconds(how: str) -> float:
        started = clock(device)
        loss = generate.loss(model, batch(how))
        loss.backward()
        losses[how] = loss.item()
        return clock(device) - started

    found = interleave({how: partial(seconds, how) for how in ("padded", "packed")}, options.rounds, 1)
    started = clock(device)
    pack(model, padded, way, "fp32", device)
    packing = clock(device) - started
    about = {
        **provenance(),
        "device": device_name(device),
        "model": {"layers": options.layers, "width": options.width, "vocabulary": VOCABULARY},
        "rows": {"count": options.rows, "shortest": int(lengths.min()), "longest": int(lengths.max())},
        "tokens": {"rows": int(lengths.sum()), **{how: batch(how)["input_ids"].numel() for how in found}},
        "packing": way,
        "seconds": {how: round(statistics.median(values), 3) for how, values in found.items()},
        "packed_over_padded": ratio(found["packed"], found["padded"]),
        "losses": losses,
        "seconds_of_packing": round(packing, 4),
        "seconds_of_the_check": round(check, 3),
    }
    print(json.dumps(about, indent=2))
    if options.json:
        options.json.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
