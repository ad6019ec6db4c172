"""Packed rows: what lies where, the loss and gradients of rows computed one by one, and models that mix rows."""

import types

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from adarank.harness.data.packing import bins, block_mask, capacity, in_bins, pack, way_to_pack
from adarank.harness.data.task_types import generate
from tests.harness.data.causal_models import VOCABULARY, build
from tests.representatives import representatives

CPU = torch.device("cpu")
LENGTHS = (7, 12, 3, 9, 12)
WAYS = {
    "llama": "positions", "qwen2": "positions", "gpt2": "positions", "qwen3": "positions", "mistral": "positions",
    "gemma2": "positions", "gemma3": "positions", "mixtral": "positions", "phi3": "positions", "olmo2": "positions",
    "granite": "positions", "cohere": "positions", "gpt_neox": "positions", "gptj": "positions", "gpt_neo": "positions",
    "opt": "block_mask", "falcon": "block_mask", "mpt": "block_mask", "gpt_oss": "layer_masks",
}  # fmt: skip


def padded(lengths=LENGTHS, first_counted=4):
    """Rows of random tokens, of which the first few do not count."""
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(3, VOCABULARY, (n,), generator=generator) for n in lengths]
    labels = [torch.where(torch.arange(len(row)) < min(first_counted, len(row) - 1), -100, row) for row in rows]
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(rows, batch_first=True),
        "attention_mask": pad([torch.ones_like(row) for row in rows], batch_first=True),
        "labels": pad(labels, batch_first=True, padding_value=-100),
    }


def one_by_one(model, batch):
    """The mean loss over all counted tokens, each row computed alone and without padding."""
    total, count = 0.0, int((batch["labels"] != -100).sum())
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        n = int(mask.sum())
        logits = model(input_ids=ids[None, :n], use_cache=False).logits[0, :-1]
        total = total + F.cross_entropy(logits, labels[1:n], ignore_index=-100, reduction="sum")
    return total / count


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_the_longest_rows_go_first_each_into_the_first_bin_with_room():
    assert bins(LENGTHS, 12) == [[1], [4], [3, 2], [0]]
    assert bins(LENGTHS, sum(LENGTHS)) == [[1, 4, 3, 0, 2]]
    assert bins([5, 5, 5], 5) == [[0], [1], [2]]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(0, 30))
def test_every_row_is_in_one_bin_and_no_bin_overflows(lengths, more):
    size = max(lengths) + more
    packed = bins(lengths, size)
    assert sorted(row for rows in packed for row in rows) == list(range(len(lengths)))
    filled = [sum(lengths[row] for row in rows) for rows in packed]
    assert max(filled) <= size
    assert sum(2 * n <= size for n in filled) <= 1  # two half-empty bins would have been one


def test_what_lies_where():
    batch = {
        "input_ids": torch.tensor([[5, 6, 0, 0], [7, 8, 9, 10], [11, 0, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]),
        "labels": torch.tensor([[-100, 6, -100, -100], [-100, -100, 9, 10], [11, -100, -100, -100]]),
    }
    model = build("llama")
    packed = pack(model, batch, "block_mask", "fp32", CPU)
    assert packed["input_ids"].tolist() == [[7, 8, 9, 10], [5, 6, 11, 5]]  # any token may stand where no row is
    assert packed["position_ids"].tolist() == [[0, 1, 2, 3], [0, 1, 0, 0]]
    assert packed["labels"].tolist() == [[-100, -100, 9, 10], [-100, 6, 11, -100]]
    mask = packed["attention_mask"]
    assert mask.shape == (2, 1, 4, 4)
    assert (mask[1, 0] == 0).tolist() == [
        [True, False, False, False], [True, True, False, False], [False, False, True, False], [False, False, False, True],
    ]  # fmt: skip
    assert mask.min() == torch.finfo(torch.float32).min
    assert pack(model, batch, "positions", "fp32", CPU).keys() == {"input_ids", "labels", "position_ids"}


@pytest.mark.parametrize("window", [None, 3])
def test_the_mask_by_a_loop(window):
    owner = torch.tensor([[4, 4, 4, 4, 1, 1, -1, -1]])
    mask = block_mask(owner, torch.bfloat16, window)[0, 0]
    for i in range(8):
        for j in range(8):
            seen = j <= i and owner[0, i] == owner[0, j] and (window is None or i - j < window)
            assert mask[i, j] == (0 if seen else torch.finfo(torch.bfloat16).min)


@pytest.mark.parametrize("family", representatives(WAYS, 3))
def test_packed_rows_have_the_loss_and_gradients_of_rows_alone(family):
    model, batch = build(family).train(), padded()
    way = way_to_pack(model, max(LENGTHS), "fp32", CPU)
    assert way == WAYS[family]
    assert model.training
    expected = one_by_one(model, batch)
    found = generate.loss(model, pack(model, batch, way, "fp32", CPU))
    assert found.item() == pytest.approx(expected.item(), abs=1e-6)
    theirs, ours = gradients(model, expected), gradients(model, found)
    assert theirs.keys() == ours.keys()
    assert max((theirs[name] - ours[name]).abs().max().item() for name in theirs) <= 1e-6


def test_first_tokens_that_count_are_predicted_by_nothing_but_are_in_the_mean():
    """As in padded rows, whose first label is never asked for either."""
    model, batch = build("llama"), padded(first_counted=0)
    expected = generate.loss(model, batch)
    assert generate.loss(model, pack(model, batch, "positions", "fp32", CPU)).item() == pytest.approx(
        expected.item(), abs=1e-6
    )


@pytest.mark.parametrize("family", representatives(["bloom", "mamba", "rwkv"], 1))
def test_models_that_mix_rows_are_found(family):
    assert way_to_pack(build(family), max(LENGTHS), "fp32", CPU) is None


def test_a_model_that_ignores_its_window_in_packed_rows_is_found_where_rows_are_longer_than_the_window():
    """GPT-OSS computes with a block mask in every layer, the windowed ones included."""
    model = build("gpt_oss")
    model.config.sliding_window = model.model.config.sliding_window = 11
    assert way_to_pack(model, 11, "fp32", CPU) == "block_mask"
    assert way_to_pack(model, 24, "fp32", CPU) == "layer_masks"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_check_knows_rounding_from_mixing(precision):
    assert way_to_pack(build("llama"), 40, precision, CPU) == "positions"
    assert way_to_pack(build("opt"), 40, precision, CPU) == "block_mask"


def test_variable_length_flash_attention_takes_one_bin():
    model = types.SimpleNamespace(config=types.SimpleNamespace(_attn_implementation="flash_attention_2"))
    assert capacity(model, LENGTHS) == sum(LENGTHS)
    assert capacity(build("llama"), LENGTHS) == 12
    model, batch = build("llama"), padded()
    one = in_bins(model, batch, bins(LENGTHS, sum(LENGTHS)), "positions", "fp32", CPU)
    assert one["input_ids"].shape == (1, sum(LENGTHS))
    assert generate.loss(model, one).item() == pytest.approx(one_by_one(model, batch).item(), abs=1e-6)


def test_packing_saves_tokens():
    generator = np.random.default_rng(0)
    lengths = np.minimum(512, generator.lognormal(4.5, 0.8, 64).astype(int) + 8)
    tokens = len(bins(lengths, int(lengths.max()))) * int(lengths.max())
    assert tokens < 1.15 * lengths.sum() < 0.5 * lengths.max() * len(lengths)
