"""Small tokenizers and models with chat templates in the forms of Qwen (ChatML) and Llama 3."""

import torch

from adarank.harness.models import byte_tokenizer

CORPUS = [
    "You are a helpful assistant.",
    "Hello there, how are you?",
    "assistant user system",
    "The sum is 12.\n\nYes.",
]
HEAD = "{% for m in messages %}"
CHATML_SYSTEM = "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
CHATML_PROMPT = "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
LLAMA_HEADER = "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' }}"
LLAMA_PROMPT = (
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)


def marked(text):
    """The text of a message, inside generation marks if it is the assistant's."""
    return (
        f"{{% if m.role == 'assistant' %}}{{% generation %}}{text}{{% endgeneration %}}{{% else %}}{text}{{% endif %}}"
    )


CHATML_TEXT, LLAMA_TEXT = "{{ m.content + '<|im_end|>' }}", "{{ m.content | trim + '<|eot_id|>' }}"
CHATML_HEADER = "{{ '<|im_start|>' + m.role + '\\n' }}"
CHATML = f"{CHATML_SYSTEM}{HEAD}{CHATML_HEADER}{CHATML_TEXT}{{{{ '\\n' }}}}{CHATML_PROMPT}"
CHATML_MARKED = f"{CHATML_SYSTEM}{HEAD}{CHATML_HEADER}{marked(CHATML_TEXT)}{{{{ '\\n' }}}}{CHATML_PROMPT}"
LLAMA3 = f"{{{{ bos_token }}}}{HEAD}{LLAMA_HEADER}{LLAMA_TEXT}{LLAMA_PROMPT}"
LLAMA3_MARKED = f"{{{{ bos_token }}}}{HEAD}{LLAMA_HEADER}{marked(LLAMA_TEXT)}{LLAMA_PROMPT}"
TEMPLATES = {"chatml": CHATML, "chatml_marked": CHATML_MARKED, "llama3": LLAMA3, "llama3_marked": LLAMA3_MARKED}
# Like Qwen 3's: only the last answer is written after (empty) thoughts, so that prefixes do not nest.
THINKING = CHATML.replace(
    CHATML_TEXT,
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}" + CHATML_TEXT,
)
DATED = "{{ bos_token }}{{ 'Today is ' + strftime_now('%d %b %Y') + '\\n' }}" + LLAMA3.removeprefix("{{ bos_token }}")


def chat_tokenizer(form):
    """A byte-level BPE with a few merges and the special tokens of a family; form: a key of TEMPLATES."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    llama = form.startswith("llama3")
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    if not llama:
        special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    words = Tokenizer(models.BPE(ignore_merges=llama))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + 60, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    words.train_from_iterator(CORPUS * 3, trainer)
    # As published: a base tokenizer's own end token is not the one that ends a turn.
    names = {"bos_token": special[0], "eos_token": special[1]} if llama else {"eos_token": special[0]}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token=special[1 if llama else 0], **names)
    tokenizer.chat_template = TEMPLATES[form]
    return tokenizer


def save_model(folder, form, template=None):
    """A tiny random Llama with such a tokenizer, as save_pretrained writes it; form: None for a byte tokenizer without
    a template."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer() if form is None else chat_tokenizer(form)
    if form is None:
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    if template is not None:
        tokenizer.chat_template = template
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=1,
        num_key_value_heads=1, bos_token_id=None, eos_token_id=None, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
