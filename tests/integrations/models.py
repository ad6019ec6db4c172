"""Small random models that need no adarank to build."""

import transformers

BERT = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


def bert():
    return transformers.BertForSequenceClassification(transformers.BertConfig(**BERT, num_labels=3))


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=60, n_embd=32, n_layer=1, n_head=2, num_labels=3, pad_token_id=0, bos_token_id=1, eos_token_id=1
    )
    return transformers.GPT2ForSequenceClassification(config)


def vit():
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=3)
    )


def llama():
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, vocab_size=60, intermediate_size=48))
