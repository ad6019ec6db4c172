from itertools import combinations, islice, pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import adarank
from adarank.harness.data.batches import (
    AUTO_GAIN,
    AUTO_PASSES,
    collate,
    encode,
    evaluation_order,
    grouped_by_length,
    init_batches,
    microbatches,
    training_order,
    without_full_mask,
)
from adarank.harness.data.task_types import TASK_TYPES
from adarank.harness.data.tasks.base import Split
from adarank.harness.models import TINY, byte_tokenizer, tiny
from tests.representatives import representatives


def encoded(texts, pair=None, max_length=16):
    return encode(Split(texts, pair, np.arange(len(texts))), byte_tokenizer(), max_length)


@given(rows=st.integers(1, 50), batch=st.integers(1, 70), seed=st.integers(0, 5))
def test_every_epoch_sees_every_row_once_and_every_batch_is_full(rows, batch, seed):
    order = training_order(rows, batch, seed)
    seen = np.concatenate([next(order) for _ in range(-(-3 * rows // batch))])
    assert len(seen) % batch == 0
    for epoch in range(3):
        assert sorted(seen[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


def test_every_epoch_has_an_order_of_its_own():
    epochs = [order.tolist() for order in islice(training_order(40, 40, 0), 4)]
    assert all(one != other for one, other in combinations(epochs, 2))


def test_the_order_depends_on_the_seed_alone():
    first, again, other = training_order(40, 8, 0), training_order(40, 8, 0), training_order(40, 8, 1)
    torch.rand(5)
    assert all((next(first) == next(again)).all() for _ in range(20))
    assert (next(training_order(40, 8, 0)) != next(other)).any()


@given(rows=st.integers(1, 200), batch=st.integers(1, 20), seed=st.integers(0, 5))
def test_grouped_batches_hold_the_same_rows_pool_by_pool(rows, batch, seed):
    sizes = np.random.default_rng(seed).integers(1, 40, rows)
    pool = min(50, max(1, rows // (4 * batch)))
    plain, grouped = (
        training_order(rows, batch, seed),
        grouped_by_length(training_order(rows, batch, seed), sizes, seed),
    )
    for _ in range(3):
        one, other = ([next(order) for _ in range(pool)] for order in (plain, grouped))
        assert sorted(np.concatenate(one)) == sorted(np.concatenate(other))
        assert all(len(found) == batch for found in other)
        ends = sorted((sizes[found].min(), sizes[found].max()) for found in other)
        assert all(low[1] <= high[0] for low, high in pairwise(ends))  # no two batches overlap


def test_grouped_batches_pad_less_and_come_in_no_order_of_length():
    sizes = np.random.default_rng(0).geometric(0.08, 4000)

    def padded(order):
        return [16 * sizes[next(order)].max() for _ in range(200)]

    plain = padded(training_order(4000, 16, 3))
    grouped = padded(grouped_by_length(training_order(4000, 16, 3), sizes, 3))
    assert sum(grouped) < 0.5 * sum(plain)
    assert sum(grouped) < 1.2 * 200 * 16 * sizes.mean()
    rises = np.sign(np.diff(grouped[:50]))
    assert 10 < (rises > 0).sum() < 40


def test_the_grouped_order_depends_on_the_seed_alone():
    sizes = np.arange(300) % 17
    first, again, other = (grouped_by_length(training_order(300, 8, s), sizes, s) for s in (0, 0, 1))
    found = [[next(order).tolist() for _ in range(30)] for order in (first, again, other)]
    assert found[0] == found[1] != found[2]


def test_every_pool_of_grouped_batches_comes_in_an_order_of_its_own():
    order = grouped_by_length(training_order(40, 1, 0), np.arange(40), 0)  # pools of ten rows, a batch each
    pools = [np.argsort([next(order).item() for _ in range(10)]).tolist() for _ in range(4)]
    assert all(one != other for one, other in combinations(pools, 2))


def test_inits_read_every_row_in_another_order_than_training():
    def batches(seed):
        drawn = init_batches(lambda rows, numbers, device: numbers.tolist(), range(40), 8, seed, torch.device("cpu"))
        return list(islice(drawn, 5))

    assert sorted(np.concatenate(batches(0))) == list(range(40))
    assert batches(0) == batches(0) != batches(1)
    assert batches(0) != [numbers.tolist() for numbers in islice(training_order(40, 8, 0), 5)]


def test_batches_are_padded_to_their_longest_row_only():
    rows = encoded(["a", "abc", "abcdefgh"])
    inputs, labels = collate(rows, np.array([1, 0]), torch.device("cpu"))
    assert inputs["input_ids"].shape == (2, 5)
    assert inputs["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    assert inputs["input_ids"][1, 3:].tolist() == [rows.pad["input_ids"]] * 2
    assert labels.tolist() == [1, 0]


class HostReads(TorchDispatchMode):
    """Counts the values that are read on the host: on a GPU, each of them waits for the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        return function(*args, **(kwargs or {}))


TEXT_MODELS = [arch for arch in TINY if arch != "vit"]


@pytest.mark.parametrize("kind", representatives(["classify", "generate", "extract", "seq2seq"], ["classify"]))
@pytest.mark.parametrize("arch", representatives(TEXT_MODELS, ["bert", "llama"]))
def test_where_no_row_is_padded_no_mask_is_needed(arch, kind):
    """Bit for bit the same loss and gradients, and Transformers reads nothing on the host, except that a decoder
    without a cache looks for packed rows instead."""
    task_type = TASK_TYPES[kind]
    try:
        built = tiny(arch, width=32).build(2 if task_type.FRESH_HEAD else 0, task_type)
    except (adarank.SettingError, ValueError):
        pytest.skip(f"{arch} does no such task")
    ids = torch.randint(4, 100, (3, 9), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = built.tokenizer.sep_token_id
    ids[1, 4] = built.tokenizer.pad_token_id  # a token like any other, where the mask says so
    labels = {
        "classify": {"labels": torch.tensor([0, 1, 1])},
        "extract": {"start_positions": torch.tensor([1, 2, 3]), "end_positions": torch.tensor([4, 2, 8])},
    }.get(kind, {"labels": ids})
    whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **labels}
    unmasked = without_full_mask(whole, np.array([9, 9, 9]))
    assert unmasked.keys() == whole.keys() - {"attention_mask"}
    assert without_full_mask(whole, np.array([9, 8, 9])).keys() == whole.keys()

    results, reads = [], []
    for batch in (whole, unmasked):
        built.model.zero_grad()
        torch.manual_seed(0)
        with HostReads() as host:
            loss = task_type.loss(built.model, batch)
        loss.backward()
        results.append([loss, *(p.grad for p in built.model.parameters() if p.grad is not None)])
        reads.append(host.count)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    looks_for_packed_rows = kind == "generate" or arch == "bart"
    assert reads[1] <= (min(1, reads[0]) if looks_for_packed_rows else 0)


def test_of_a_pair_the_longer_sentence_is_cut():
    long, short = "abcdef" * 10, "xyz"
    rows = encoded([long, short, long], [short, long, long], max_length=15)
    assert rows.lengths.tolist() == [15] * 3
    whole = [byte_tokenizer().decode(ids, skip_special_tokens=True) for ids in rows.tokens["input_ids"]]
    assert [(text.count("xyz"), text.count("abcdef")) for text in whole] == [(1, 1), (1, 1), (0, 2)]


def test_evaluation_covers_every_row_once_sorted_by_length():
    rows = encoded(["a" * n for n in (3, 9, 1, 7, 5)])
    order = np.concatenate(evaluation_order(rows.lengths, 2))
    assert sorted(order) == list(range(5))
    assert order.tolist() == [1, 3, 4, 0, 2]


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 9))
def test_no_batch_of_an_evaluation_is_larger_than_the_first_and_none_could_take_another_row(lengths, batch):
    order = evaluation_order(np.array(lengths, dtype=np.int64), batch)
    assert sorted(row for rows in order for row in rows) == list(range(len(lengths)))
    padded = [max(max(lengths[row] for row in rows), 1) for rows in order]
    tokens = [len(rows) * longest for rows, longest in zip(order, padded, strict=True)]
    limit = batch * max([*lengths, 1])
    assert all(size <= limit for size in tokens)
    assert all(size + longest > limit for size, longest in list(zip(tokens, padded, strict=True))[:-1])


def padded(lengths, passes):
    return sum(len(places) * lengths[places].max() for places in passes)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=6), st.integers(1, 7))
def test_no_division_into_as_many_passes_has_fewer_tokens(lengths, passes):
    """Against every way to deal the rows out, sorted or not."""
    lengths = np.array(lengths)
    found = microbatches(lengths, passes)
    count = min(passes, len(lengths))
    assert len(found) == count
    assert all(len(places) for places in found)
    assert sorted(np.concatenate(found)) == list(range(len(lengths)))
    dealt = (np.array(owners) for owners in product(range(count), repeat=len(lengths)))
    every = ([np.flatnonzero(owners == c) for c in range(count)] for owners in dealt if len({*owners}) == count)
    assert padded(lengths, found) == min(padded(lengths, division) for division in every)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=24), st.integers(0, 80))
def test_auto_has_the_least_cost_or_one_pass_in_its_order_where_it_saves_too_little(lengths, overhead):
    lengths = np.array(lengths)
    costs = [
        overhead * c + padded(lengths, microbatches(lengths, c)) for c in range(1, min(AUTO_PASSES, len(lengths)) + 1)
    ]
    found = microbatches(lengths, "auto", overhead)
    cost = overhead * len(found) + padded(lengths, found)
    if min(costs) > (1 - AUTO_GAIN) * costs[0]:
        assert [places.tolist() for places in found] == [list(range(len(lengths)))]
    else:
        assert cost == min(costs)


def test_rows_of_one_length_are_divided_evenly_and_by_auto_never():
    lengths = np.full(10, 7)
    assert sorted(map(len, microbatches(lengths, 4))) == [2, 2, 3, 3]
    assert len(microbatches(lengths, "auto", 0)) == 1
