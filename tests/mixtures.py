"""Tiny random mixtures of experts, as Transformers stacks them: Mixtral, Qwen3-MoE, and GPT-OSS, whose stacks are
transposed and have biases."""

import torch
import transformers
from torch import nn

SIZES = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
SIZES |= {"num_key_value_heads": 2, "intermediate_size": 24, "num_experts_per_tok": 2, "pad_token_id": 0}
FAMILIES = {
    "Mixtral": {"num_local_experts": 4},
    "Qwen3Moe": {"num_experts": 8, "moe_intermediate_size": 16},
    "GptOss": {"num_local_experts": 4},
}
EXPERTS = {"Mixtral": 4, "Qwen3Moe": 8, "GptOss": 4}


def mixture(family, seed=0, dtype=torch.float32):
    """A causal language model with experts that matter, in evaluation mode."""
    config = getattr(transformers, f"{family}Config")(**SIZES, **FAMILIES[family])
    torch.manual_seed(seed)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    for name, parameter in model.named_parameters():
        if "experts" in name:
            nn.init.normal_(parameter, std=0.3)
    return model.to(dtype).eval()


def stacks_of(model):
    """{name: module} of the plain modules of stacked experts."""
    return {name: module for name, module in model.named_modules() if name.endswith("mlp.experts")}


def rows(count=2, length=9):
    return torch.randint(1, 97, (count, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def disturb(adapters, pruned=True):
    """As if trained: other factors, and uneven ranks with 0 among them."""
    generator = torch.Generator().manual_seed(2)
    for i, adapter in enumerate(adapters.values()):
        for part in (adapter.Q, adapter.P, *([adapter.lam] if adapter.learns_lambda else [])):
            part.add_(0.3 * torch.randn(part.shape, generator=generator).to(part))
        if pruned:
            adapter.mask[: i % (adapter.rank + 1)] = False
