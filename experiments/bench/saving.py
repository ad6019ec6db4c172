"""The peak memory of a run that saves its state often: full fine-tuning of a random Llama stored in bf16.

    python experiments/bench/saving.py [--layers 22 --width 1024 --steps 12 --seconds 10] [--method full] [--json FILE]

The script writes the model and its task (prompts of random letters) into a temporary folder, and `adarank run` trains
them in a separate process. It reports the process's peak resident memory, the sizes of weights, gradients and AdamW's
averages, which every run needs, and the remainder.
"""

import argparse
import json
import os
import random
import string
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def write_model(folder: Path, layers: int, width: int) -> int:
    """A random Llama in bf16 with byte tokens; returns its number of parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from adarank.harness.models import byte_tokenizer

    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=32_000, hidden_size=width, intermediate_size=11 * width // 4, num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=width // 64, tie_word_embeddings=True,
        bos_token_id=tokenizer.cls_token_id, eos_token_id=tokenizer.sep_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


def write_task(folder: Path, rows: int) -> None:
    draw = random.Random(0)
    folder.mkdir()
    for split, count in (("train", rows), ("dev", 4)):
        lines = ("".join(draw.choices(string.ascii_lowercase, k=24)) for _ in range(count))
        text = "".join(json.dumps({"prompt": line[:12], "response": line[12:]}) + "\n" for line in lines)
        (folder / f"{split}.jsonl").write_text(text)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        pid = os.fork()  # create the model in a separate process, so that its memory does not count
        if not pid:
            (folder / "parameters").write_text(str(write_model(folder / "model", options.layers, options.width)))
            os._exit(0)
        if os.waitpid(pid, 0)[1]:
            raise SystemExit("the model could not be created")
        parameters = int((folder / "parameters").read_text())
        write_task(folder / "task", 2 * options.steps)
        words = ["task=instruct", f"task.path={folder / 'task'}", "task.max_new_tokens=1", "task.generate_rows=1"]
        words += ["model=local", f"model.path={folder / 'model'}", f"method={options.method}", f"out={folder / 'out'}"]
        words += [f"train.steps={options.steps}", "train.batch_size=2", "train.log_every=1", "train.warmup=1"]
        words += ["train.eval_every=4", f"checkpoint_seconds={options.seconds}", *options.settings]
        run = subprocess.Popen([sys.executable, str(ROOT / "experiments" / "run.py"), *words])
        _, status, usage = os.wait4(run.pid, 0)
        if status:
            raise SystemExit(os.waitstatus_to_exitcode(status))
        (file,) = (folder / "out").glob("*/summary.json")
        summary = json.loads(file.read_text())
    peak = usage.ru_maxrss / 2**20  # KiB, of that process alone
    live = 16 * summary["parameters"]["trainable"] / 2**30  # fp32 weights, gradients and two averages
    frozen = 4 * (parameters - summary["parameters"]["trainable"]) / 2**30 if options.method != "full" else 0.0
    return {
        "model": {"layers": options.layers, "width": options.width, "parameters": parameters, "stored": "bf16"},
        "method": options.method,
        "checkpoint_seconds": options.seconds,
        "device": summary["device"],
        "commit": summary["commit"],
        "dtype": summary.get("dtype"),
        "peak_gib": round(peak, 2),
        "live_gib": round(live + max(frozen, 0.0), 2),
        "train_s": round(summary["time"]["train_s"], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seconds", default="10", help="checkpoint_seconds of the run")
    parser.add_argument("--method", default="full")
    parser.add_argument("--json", type=Path)
    parser.add_argument("settings", nargs="*", help="further settings of the run")
    options = parser.parse_args()
    found = measure(options)
    print(json.dumps(found, indent=2))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
