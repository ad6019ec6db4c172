"""What PEFT's own AdaLoRA does, for the table of docs/ecosystem.md; `peft_side.py make` writes it as JSON."""

import copy
import json
import tempfile
import warnings

import numpy
import peft
import torch
from models import bert, llama  # the file beside this one
from torch import nn

IDS, LABELS = torch.randint(2, 60, (4, 7), generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
SCHEDULE = {"init_r": 4, "target_r": 2, "tinit": 2, "tfinal": 6, "deltaT": 1, "total_step": 30}


def adapted(base=None, **settings):
    torch.manual_seed(0)
    settings = {**SCHEDULE, "target_modules": ["query", "value"], "task_type": "SEQ_CLS", **settings}
    return peft.get_peft_model(base or bert(), peft.AdaLoraConfig(**settings))


def train(model, steps, allocate=True):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in steps:
        model(input_ids=IDS, labels=LABELS).loss.backward()
        optimizer.step()
        if allocate:
            model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    return model


def kept(model):
    return sum(int((p != 0).sum()) for n, p in model.named_parameters() if "lora_E" in n)


def error(call):
    try:
        call()
    except Exception as found:
        return f"{type(found).__name__}: {found}"
    return None


def orthogonality(**smoothing):
    """The norm of what the orthogonality term adds to the gradient of lora_A, with the model's own loss or another."""
    gradients = []
    for weight in (0.5, 0.0):
        model = adapted(orth_reg_weight=weight).eval()
        out = model(input_ids=IDS, labels=LABELS)
        (nn.functional.cross_entropy(out.logits, LABELS, **smoothing) if smoothing else out.loss).backward()
        gradients.append(torch.cat([p.grad.flatten() for n, p in model.named_parameters() if "lora_A" in n]))
    return float((gradients[0] - gradients[1]).norm())


def accumulated(parts):
    """The same for a language model whose rows come in some micro-batches, as transformers' Trainer runs them: each
    loss is a sum over its tokens divided by the number in all micro-batches."""
    gradients = []
    for weight in (0.5, 0.0):
        torch.manual_seed(1)
        model = adapted(llama(), orth_reg_weight=weight, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        for ids in IDS.chunk(parts):
            model.eval()(input_ids=ids, labels=ids, num_items_in_batch=IDS.numel() - len(IDS)).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for n, p in model.named_parameters() if "lora_A" in n]))
    return float((gradients[0] - gradients[1]).norm())


def resumed():
    """Triplets kept (in one go, at step 12, after saving there and going on)."""
    once = train(adapted(), range(24))
    model = train(adapted(), range(12))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        torch.manual_seed(0)
        again = peft.PeftModel.from_pretrained(bert(), folder, is_trainable=True)
        halfway = kept(again)
        return kept(once), halfway, kept(train(again, range(12, 24)))


def ties():
    """Triplets kept of a budget of 8 when all scores are equal."""
    model = adapted()
    allocator = model.base_model.rankallocator
    for name, parameter in model.base_model.model.named_parameters():
        if "lora_" in name:
            allocator.ipt[name] = torch.ones_like(parameter)
            allocator.exp_avg_ipt[name] = torch.ones_like(parameter)
            allocator.exp_avg_unc[name] = torch.ones_like(parameter)
            parameter.data.fill_(1.0)
    allocator.mask_to_budget(model.base_model.model, 8)
    return kept(model)


def scales(**settings):
    model = adapted(**settings)
    return [
        float(m.scaling["default"] / (m.ranknum["default"] + 1e-5)) for m in model.modules() if hasattr(m, "ranknum")
    ]


def merge_4bit():
    from bitsandbytes.nn import Linear4bit
    from peft.tuners.adalora.bnb import SVDLinear4bit

    SVDLinear4bit(Linear4bit(8, 8), "default", config=peft.AdaLoraConfig(**SCHEDULE), r=2).merge()


def with_norm(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8))


def loaded(wrap=lambda base: base, seed=0):
    """(the model that was saved, the model into which it was loaded, messages of the warnings)."""
    model = adapted(wrap(with_norm()), target_modules=["0", "3"], task_type=None)
    for part in (p for n, p in model.named_parameters() if "lora_E" in n):
        nn.init.ones_(part)
    for step in range(9):
        model(3 + 2 * torch.randn(16, 6, generator=torch.Generator().manual_seed(step)))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.save_pretrained(folder)
        again = peft.PeftModel.from_pretrained(with_norm(seed), folder)
    return model.eval(), again.eval(), [str(warning.message) for warning in caught]


@torch.no_grad()
def statistics():
    """The largest errors after loading, and without adapters against the untouched base."""
    model, again, _ = loaded()
    x = torch.ones(3, 6)
    with model.disable_adapter():
        plain = model(x)
    return [float((model(x) - again(x)).abs().max()), float((plain - with_norm().eval()(x)).abs().max())]


def averaged():
    """Triplets kept by the model and by the average of its weights, of a budget of 8."""
    model = adapted()
    average = torch.optim.swa_utils.AveragedModel(model)
    for step in range(28):
        train(model, [step])
        average.update_parameters(model)
    return [kept(model), kept(average.module)]


def numpy_rank():
    with tempfile.TemporaryDirectory() as folder:
        adapted(init_r=numpy.int64(4), target_r=numpy.int64(2)).save_pretrained(folder)


def main(target):
    trained = train(adapted(), range(28))
    findings = {
        "convert": error(lambda: peft.tuners.lora.convert_to_lora(copy.deepcopy(trained), 2)),
        "embedding": error(lambda: adapted(target_modules=["word_embeddings"])),
        "merge_4bit": error(merge_4bit),
        "equal_ranks": error(lambda: train(adapted(target_r=4), range(12))),
        "rslora": [scales(), scales(use_rslora=True)],
        "alpha_pattern": [scales(), scales(alpha_pattern={"query": 40})],
        "orthogonality": [orthogonality(), orthogonality(label_smoothing=0.1)],
        "accumulation": [accumulated(1), accumulated(4)],
        "resume": resumed(),
        "ties": ties(),
        "statistics": statistics(),
        "other_base": loaded(seed=1)[2],
        "compiled": loaded(wrap=lambda base: torch.compile(base, backend="eager"))[2],
        "averaged": averaged(),
        "numpy_rank": error(numpy_rank),
        "memory": [sum(p.numel() for n, p in m.named_parameters() if "lora_" in n) for m in (adapted(), trained)],
        "kept": [kept(trained), kept(train(adapted(), range(28), allocate=False))],
    }
    target.write_text(json.dumps(findings, indent=2))
