"""Small random causal language models of many families, without dropout."""

import torch
import transformers as T

VOCABULARY = 97
PLAIN = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}
LLAMA = {**PLAIN, "intermediate_size": 48, "num_key_value_heads": 2}
WINDOW = {**LLAMA, "head_dim": 8, "sliding_window": 4}
GPT = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4}
NO_DROP = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
NEO = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 4,
    "attention_types": [[["global", "local"], 1]], "resid_dropout": 0.0, "embed_dropout": 0.0, "attention_dropout": 0.0,
}  # fmt: skip
OPT = {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0}
RWKV = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32}
FAMILIES = {
    "llama": lambda: T.LlamaForCausalLM(T.LlamaConfig(**LLAMA)),
    "qwen2": lambda: T.Qwen2ForCausalLM(T.Qwen2Config(**LLAMA)),
    "gpt2": lambda: T.GPT2LMHeadModel(T.GPT2Config(**GPT, **NO_DROP)),
    "qwen3": lambda: T.Qwen3ForCausalLM(T.Qwen3Config(**LLAMA, head_dim=8)),
    "mistral": lambda: T.MistralForCausalLM(T.MistralConfig(**WINDOW)),
    "gemma2": lambda: T.Gemma2ForCausalLM(T.Gemma2Config(**WINDOW)),
    "gemma3": lambda: T.Gemma3ForCausalLM(T.Gemma3TextConfig(**WINDOW)),
    "gpt_oss": lambda: T.GptOssForCausalLM(T.GptOssConfig(**WINDOW, num_local_experts=4)),
    "mixtral": lambda: T.MixtralForCausalLM(T.MixtralConfig(**LLAMA, num_local_experts=4)),
    "phi3": lambda: T.Phi3ForCausalLM(T.Phi3Config(**LLAMA)),
    "olmo2": lambda: T.Olmo2ForCausalLM(T.Olmo2Config(**LLAMA)),
    "granite": lambda: T.GraniteForCausalLM(T.GraniteConfig(**LLAMA, logits_scaling=4.0)),
    "cohere": lambda: T.CohereForCausalLM(T.CohereConfig(**LLAMA)),
    "gpt_neox": lambda: T.GPTNeoXForCausalLM(T.GPTNeoXConfig(**PLAIN, intermediate_size=48)),
    "gptj": lambda: T.GPTJForCausalLM(T.GPTJConfig(**GPT, **NO_DROP, rotary_dim=8)),
    "gpt_neo": lambda: T.GPTNeoForCausalLM(T.GPTNeoConfig(**NEO)),
    "opt": lambda: T.OPTForCausalLM(T.OPTConfig(**{**PLAIN, **OPT})),
    "falcon": lambda: T.FalconForCausalLM(T.FalconConfig(**PLAIN, alibi=False)),
    "mpt": lambda: T.MptForCausalLM(T.MptConfig(vocab_size=VOCABULARY, d_model=32, n_layers=2, n_heads=4)),
    "bloom": lambda: T.BloomForCausalLM(T.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4)),
    "mamba": lambda: T.MambaForCausalLM(
        T.MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4)
    ),
    "rwkv": lambda: T.RwkvForCausalLM(T.RwkvConfig(**RWKV)),
}


def build(family: str) -> T.PreTrainedModel:
    torch.manual_seed(0)
    return FAMILIES[family]()
