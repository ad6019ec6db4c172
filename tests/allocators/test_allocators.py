"""Laws that every budget-keeping allocator obeys, and the original's threshold rule."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from adarank.allocators import global_top, threshold


def allocate(allocator, scores, budget):
    scores = torch.tensor(scores, dtype=torch.float32)
    n = len(scores)
    return allocator(scores, torch.ones(n, dtype=torch.bool), budget, torch.ones(n), torch.zeros(n), None)


SCORES = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.5]), min_size=1, max_size=40)


@given(SCORES, st.data())
def test_global_top_keeps_exactly_the_budget_ties_included(scores, data):
    budget = data.draw(st.integers(0, len(scores)))
    kept = allocate(global_top(), scores, budget)
    assert kept.sum() == budget
    if 0 < budget < len(scores):
        s = torch.tensor(scores)
        assert s[kept].min() >= s[~kept].max()
        tied = (s == s[kept].min()).nonzero().squeeze(1)
        assert kept[tied].tolist() == sorted(kept[tied].tolist(), reverse=True)  # the first of equal ones


@given(SCORES, st.data())
def test_threshold_is_the_k_th_value_rule(scores, data):
    budget = data.draw(st.integers(0, len(scores)))
    kept = allocate(threshold(), scores, budget)
    drop = len(scores) - budget
    expected = [True] * len(scores) if drop == 0 else [s > sorted(scores)[drop - 1] for s in scores]
    assert kept.tolist() == expected


def test_the_original_s_rule_may_keep_none_where_ours_keeps_the_budget():
    assert allocate(threshold(), [1.0] * 20, 13).sum() == 0
    assert allocate(global_top(), [1.0] * 20, 13).sum() == 13
