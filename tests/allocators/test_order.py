"""The orders that allocators share, against loops."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from adarank.allocators import order
from tests.allocators.cases import cases


@given(cases())
def test_rank_in_group_counts_the_better_ones_of_the_same_module(case):
    keys, module = case.scores.tolist(), case.modules.tolist()
    expected = [
        sum(
            m == module[i] and (k > keys[i] or (k == keys[i] and j < i))
            for j, (k, m) in enumerate(zip(keys, module, strict=True))
        )
        for i in range(len(keys))
    ]
    assert order.rank_in_group(case.scores, case.modules).tolist() == expected


@given(cases())
def test_module_starts_and_sums(case):
    module = case.modules.tolist()
    assert order.module_starts(case.modules).tolist() == [module.index(m) for m in module]
    sums = [sum(s for s, other in zip(case.scores.tolist(), module, strict=True) if other == m) for m in module]
    assert order.sum_per_module(case.scores, case.modules).tolist() == sums


@given(st.permutations(range(7)))
def test_positions_is_the_inverse_permutation(permutation):
    position = order.positions(torch.tensor(permutation))
    assert [permutation[p] for p in position.tolist()] == list(range(7))


@given(cases(unit="parameters"), st.integers(0, 200))
def test_keep_first_stops_at_the_first_that_does_not_fit(case, budget):
    given_order = torch.argsort(case.scores, stable=True)
    expected, left = [], budget
    for i in given_order.tolist():
        left -= case.costs[i].item()
        if left < 0:
            break
        expected.append(i)
    kept = order.keep_first(case.request(budget), given_order)
    assert sorted(expected) == [i for i, on in enumerate(kept.tolist()) if on]
