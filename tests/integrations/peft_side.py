"""What PEFT does in a process of its own, without adarank: a line `load FOLDER` or `make FOLDER` of standard input each
time, answered by a line `done`.

load: every FOLDER/<case>/ holds base/ (save_pretrained), adapter/, inputs.safetensors and class.txt; the logits of
PeftModel.from_pretrained are written to logits.safetensors beside them. make: writes adapters that PEFT trained a
little, FOLDER/<case>/ with the same files, and what its AdaLoRA does to FOLDER/faults.json.
"""

import os
import sys
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import peft
import peft_faults  # the files beside this one
import torch
import transformers
from models import bert, gpt2, vit
from safetensors.torch import load_file, save_file


def logits(model, inputs):
    with torch.no_grad():
        out = model.eval()(**inputs)
    return (out.logits if "logits" in out else torch.stack([out.start_logits, out.end_logits])).contiguous()


def load(folder):
    for case in sorted(p for p in folder.iterdir() if (p / "adapter").is_dir()):
        kind = getattr(transformers, (case / "class.txt").read_text())
        model = kind.from_pretrained(case / "base")
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # "Found missing adapter keys", say
            warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True` and a tied layer is part")
            model = peft.PeftModel.from_pretrained(model, case / "adapter")
        save_file({"logits": logits(model, load_file(case / "inputs.safetensors"))}, case / "logits.safetensors")
        (case / "kind.txt").write_text(type(model).__name__)


TARGETS = ["query", "value", "intermediate.dense"]


def lora(**settings):
    return peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": TARGETS, **settings})


def adalora(**settings):
    settings = {"init_r": 5, "target_r": 2, "tinit": 1, "tfinal": 3, "deltaT": 1, "total_step": 8, **settings}
    return peft.AdaLoraConfig(**{"lora_alpha": 7, "target_modules": TARGETS, **settings})


PATTERNS = {"rank_pattern": {"layer.0.*query": 2, "value": 3}, "alpha_pattern": {"layer.1.*value": 5}}
MADE = {
    "lora": (bert, lora()),
    "patterns": (bert, lora(**PATTERNS)),
    "rslora": (bert, lora(use_rslora=True)),
    "head": (bert, lora(task_type="SEQ_CLS", lora_dropout=0.1)),
    "embedding": (bert, lora(target_modules=["word_embeddings", "query"])),
    "conv1d": (gpt2, lora(target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)),
    "conv2d": (vit, lora(target_modules=["projection", "q_proj"], modules_to_save=["classifier"])),
    "adalora": (bert, adalora()),
    "adalora_pruned": (bert, adalora(task_type="SEQ_CLS")),
    "adalora_conv1d": (gpt2, adalora(target_modules=["c_attn"], fan_in_fan_out=True)),
    "dora": (bert, lora(use_dora=True, lora_dropout=0.1, **PATTERNS)),
    "dora_embedding": (bert, lora(use_dora=True, target_modules=["word_embeddings", "query"])),
    "dora_conv1d": (gpt2, lora(use_dora=True, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)),
    "dora_conv2d": (vit, lora(use_dora=True, target_modules=["projection", "q_proj"], modules_to_save=["classifier"])),
    "biases": (bert, lora(bias="all")),
    "pissa": (bert, lora(init_lora_weights="pissa")),
    "loha": (bert, peft.LoHaConfig(r=2, target_modules=TARGETS)),
}


def make(folder):
    for name, (build, config) in MADE.items():
        case = folder / name
        torch.manual_seed(0)
        base = build().eval()
        base.save_pretrained(case / "base")
        if build is vit:
            inputs = {"pixel_values": torch.randn(3, 3, 16, 16)}
        else:
            inputs = {"input_ids": torch.randint(2, 60, (3, 7))}
        labels = torch.tensor([0, 1, 2])
        model = peft.get_peft_model(base, config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.3 * torch.randn_like(parameter))
        if name in ("adalora_pruned", "adalora_conv1d"):
            optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
            for step in range(8):
                model(**inputs, labels=labels).loss.backward()
                optimizer.step()
                model.base_model.update_and_allocate(step)
                optimizer.zero_grad()
        save_file({"logits": logits(model, inputs)}, case / "logits.safetensors")
        if name == "dora":
            model(**inputs, labels=labels).loss.backward()
            gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
            save_file(gradients, case / "gradients.safetensors")
        save_file(inputs, case / "inputs.safetensors")
        (case / "class.txt").write_text(build().__class__.__name__)
        model.save_pretrained(case / "adapter", save_embedding_layers="embedding" in name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_faults.main(folder / "faults.json")


if __name__ == "__main__":
    assert "adarank" not in sys.modules
    for line in sys.stdin:
        command, folder = line.rstrip("\n").split(" ", 1)
        {"load": load, "make": make}[command](Path(folder))
        print("done", flush=True)
