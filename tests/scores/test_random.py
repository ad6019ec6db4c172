import itertools

import pytest
import torch

import adarank
from adarank.bank import Bank
from adarank.harness.config.spec import Piece
from adarank.pieces import needs_of
from adarank.scores import random
from tests.conftest import Net
from tests.test_controller import STEPS, run, setup


@pytest.fixture(scope="module")
def many():
    """960 triplets."""
    return Bank(adarank.adapt(Net(40), rank=12))


def numbers(seed, bank):
    score = random(seed)
    return score.score(score.init(bank), bank)


def trained(seed, **options):
    net, _, controller, optimizer = setup(score=random(seed), **options)
    masks = []
    run(net, controller, optimizer, range(STEPS), masks=masks)
    return controller, masks


def test_the_same_seed_gives_the_same_ranks_and_another_seed_others():
    ranks = [trained(seed)[0].last_allocation.ranks for seed in (0, 0, 1)]
    assert ranks[0] == ranks[1] != ranks[2]


def test_it_asks_for_the_run_s_seed_and_a_setting_wins(many):
    assert needs_of(random) == {"seed"}
    for setting, expected in ((None, 3), (5, 5), (0, 0)):
        score = Piece("score", "adarank.scores.random", {"seed": setting})(seed=3)
        assert torch.equal(score.score(score.init(many), many), numbers(expected, many))


def test_the_numbers_depend_on_neither_weights_nor_the_global_generator(many):
    first, state = numbers(3, many), torch.get_rng_state()
    many.weight.fill_(2.0)
    assert torch.equal(numbers(3, many), first)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("seed", [0, 1, 7, 2**31, 2**63 - 1])
def test_they_are_spread_evenly_between_0_and_1(seed, many):
    found = numbers(seed, many)
    assert ((found > 0) & (found <= 1)).all()
    assert found.unique().numel() >= len(found) - 2  # fp32 has 2²⁴ of them
    tenths = torch.histc(found, 10, 0, 1) / len(found)
    assert (tenths - 0.1).abs().max() < 0.05  # more than five standard deviations
    pair = torch.stack([found[:-1], found[1:]])
    assert abs(torch.corrcoef(pair)[0, 1]) < 0.13


def test_neighbouring_seeds_have_nothing_in_common(many):
    found = torch.stack([numbers(seed, many) for seed in range(20)])
    correlation = torch.corrcoef(found) - torch.eye(20)
    assert correlation.abs().max() < 0.17  # 190 pairs of 960: 5 standard deviations are 0.16


def test_what_was_pruned_stays_pruned():
    _, masks = trained(0)
    for before, after in itertools.pairwise(masks):
        assert not (after & ~before).any()


def test_a_triplet_that_starts_anew_gets_a_number_again():
    score = random(4)
    bank = Bank(adarank.adapt(Net(), rank=4))
    buffers = score.init(bank)
    first = score.score(buffers, bank)
    buffers["number"][2:5] = 0.0  # as the controller does
    score.observe(buffers, bank)
    assert torch.equal(score.score(buffers, bank), first)
