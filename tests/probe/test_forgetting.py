"""Forgetting against loops over texts one by one, and against models whose answer is known."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy import stats as reference
from torch.nn import functional as F

from adarank.errors import SettingError
from adarank.harness.data.tasks.base import Split
from adarank.harness.models import byte_tokenizer, tiny
from adarank.probe.forgetting import embeddings, language_loss, similarity_spearman

CPU = torch.device("cpu")
TEXTS = ["a long film about love", "dull", "why", "it ends well", "a", "so it goes"]
OTHERS = ["a film of love", "sharp", "because", "it began", "b", "so be it"]


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return tiny("bert").build(2)


@pytest.fixture(scope="module")
def decoder():
    """A tiny GPT-2 over bytes, with its language-model head."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = byte_tokenizer()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=64)
    return GPT2LMHeadModel(config), tokenizer


def one(model, tokenizer, text):
    """A single text without padding, its hidden states averaged in a loop."""
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    model.eval()
    with torch.no_grad():
        hidden = model.bert(ids).last_hidden_state[0]
    return sum(hidden[i] for i in range(len(hidden))) / len(hidden)


def test_embeddings_are_means_over_the_text_s_own_tokens_in_order(encoder):
    found = embeddings(encoder.model, encoder.tokenizer, TEXTS, 64, CPU)
    for text, row in zip(TEXTS, found, strict=True):
        assert row.numpy() == pytest.approx(one(encoder.model, encoder.tokenizer, text).numpy(), abs=1e-5)


def test_the_spearman_of_the_cosines(encoder):
    label = np.array([4.5, 1.0, 2.0, 3.0, 0.5, 5.0], dtype=np.float32)
    cosines = [
        float(F.cosine_similarity(*(one(encoder.model, encoder.tokenizer, t) for t in pair), dim=0))
        for pair in zip(TEXTS, OTHERS, strict=True)
    ]
    found = similarity_spearman(encoder.model, encoder.tokenizer, Split(TEXTS, OTHERS, label), 64, CPU)
    assert found == pytest.approx(reference.spearmanr(cosines, label).statistic)


def test_the_head_has_no_say(encoder):
    before = embeddings(encoder.model, encoder.tokenizer, TEXTS, 64, CPU)
    with torch.no_grad():
        encoder.model.classifier.weight.add_(1.0)
    assert torch.equal(embeddings(encoder.model, encoder.tokenizer, TEXTS, 64, CPU), before)


def test_the_loss_is_that_of_every_token_but_the_first(decoder):
    model, tokenizer = decoder
    total, count = 0.0, 0
    for text in TEXTS:
        ids = tokenizer(text, truncation=True, max_length=12)["input_ids"]
        with torch.no_grad():
            p = model.eval()(torch.tensor([ids])).logits[0].double().softmax(-1)
        total -= sum(math.log(p[i, ids[i + 1]]) for i in range(len(ids) - 1))
        count += len(ids) - 1
    assert language_loss(model, tokenizer, TEXTS, 12, CPU) == pytest.approx(total / count, rel=1e-5)


def test_a_model_that_knows_nothing_loses_the_logarithm_of_its_vocabulary(decoder):
    model, tokenizer = copy.deepcopy(decoder)
    with torch.no_grad():
        model.lm_head.weight.zero_()  # tied to the embeddings: every token is alike
    assert language_loss(model, tokenizer, TEXTS, 64, CPU) == pytest.approx(math.log(len(tokenizer)), rel=1e-6)


def test_texts_of_one_token_have_nothing_to_predict(decoder):
    model, _ = decoder

    class Single:
        pad_token_id, pad_token_type_id = 0, 0

        def __call__(self, texts, *_, **__):
            return {"input_ids": [[5] for _ in texts], "attention_mask": [[1] for _ in texts]}

    with pytest.raises(SettingError, match="no text has two tokens"):
        language_loss(model, Single(), TEXTS, 64, CPU)
