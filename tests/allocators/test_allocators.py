"""Every allocator against its rule written out in loops, and the laws it adds to the contract."""

import doctest
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adarank.allocators import (
    by_cost,
    by_family,
    global_bottom,
    global_top,
    grow,
    prune_expand,
    random,
    threshold,
    tolerance,
    uniform,
)
from adarank.allocators.allocator import Request, check_run
from adarank.errors import SettingError
from adarank.runs.modules import place_of
from tests.allocators.cases import NAMES, cases, generator, ranks_of


def allocate(allocator, scores, budget):
    scores = torch.tensor(scores, dtype=torch.float32)
    n = len(scores)
    return allocator(Request(scores, torch.ones(n, dtype=torch.bool), budget, torch.ones(n), torch.zeros(n)))


def call(allocator, case, budget, **more):
    return allocator(case.request(budget, **more))


def budget_of(case, data, least=0, most=None):
    most = len(case.scores) if most is None else most
    return data.draw(st.integers(min(least, most), most))


def members(case, i):
    return [j for j, m in enumerate(case.modules.tolist()) if m == i]


def falling(case, indices):
    return sorted(indices, key=lambda j: -case.scores[j].item())  # sorted() is stable


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


@pytest.mark.parametrize("allocator", [global_top, global_bottom])
def test_the_docstring_s_example_runs(allocator):
    names = {"torch": torch, allocator.__name__: allocator, "Request": Request}
    test = doctest.DocTestFinder().find(allocator, globs=names)[0]
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0


def clamped_by_hand(case, keys, budget, low, high):
    """First the best `low` of each module, then by falling key whatever is among the best `high` of its module."""
    place, best = {}, sorted(range(len(keys)), key=lambda j: -keys[j])
    for i in range(len(case.ranks)):
        place |= {j: p for p, j in enumerate(j for j in best if case.modules[j] == i)}
    order = [j for j in range(len(keys)) if place[j] < low] + [j for j in best if low <= place[j] < high]
    kept, left = set(), budget
    for j in order:
        left -= case.costs[j].item()
        if left < 0:
            break
        kept.add(j)
    return [j in kept for j in range(len(keys))]


@given(cases(), st.integers(0, 2), st.integers(2, 5), st.data())
def test_global_top_between_clamps(case, low, high, data):
    least = sum(min(low, r) for r in case.ranks)
    budget = budget_of(case, data, least, sum(min(high, r) for r in case.ranks))
    kept = call(global_top(low, high), case, budget)
    assert kept.tolist() == clamped_by_hand(case, case.scores.tolist(), budget, low, high)


@given(cases(), st.integers(0, 2), st.integers(2, 5), st.data())
def test_global_bottom_keeps_the_worst_of_those_that_are_on(case, low, high, data):
    least = sum(min(low, r) for r in case.ranks)
    budget = budget_of(case, data, least, sum(min(high, r) for r in case.ranks))
    kept = call(global_bottom(low, high), case, budget)
    keys = [(on, -score) for on, score in zip(case.mask.tolist(), case.scores.tolist(), strict=True)]
    places = {key: place for place, key in enumerate(sorted(set(keys)))}
    assert kept.tolist() == clamped_by_hand(case, [places[key] for key in keys], budget, low, high)


@given(cases(unit="parameters"), st.integers(0, 2), st.integers(2, 5), st.data())
def test_by_cost_takes_the_most_importance_per_parameter(case, low, high, data):
    least = sum(min(low, r) * case.costs[members(case, i)[0]].item() for i, r in enumerate(case.ranks) if r)
    budget = budget_of(case, data, least, int(case.costs.sum()))
    kept = call(by_cost(low, high), case, budget)
    keys = (case.scores / case.costs).tolist()
    assert kept.tolist() == clamped_by_hand(case, keys, budget, low, high)


@given(cases(), st.data())
def test_uniform_deals_one_triplet_to_each_module_in_turn(case, data):
    budget = budget_of(case, data)
    hands, kept = [falling(case, members(case, i)) for i in range(len(case.ranks))], []
    while len(kept) < budget:
        for hand in hands:
            if hand and len(kept) < budget:
                kept.append(hand.pop(0))
    assert call(uniform(), case, budget).tolist() == [j in kept for j in range(len(case.scores))]


@given(cases(), st.data())
def test_by_family_lets_the_family_with_the_lowest_mean_rank_go_next(case, data):
    budget, names = budget_of(case, data), NAMES[: len(case.ranks)]
    families = list(dict.fromkeys(place_of(name).kind for name in names))
    of = {f: [i for i, name in enumerate(names) if place_of(name).kind == f] for f in families}
    hands = {f: falling(case, [j for i in of[f] for j in members(case, i)]) for f in families}
    taken = dict.fromkeys(families, 0)
    kept = set()
    while len(kept) < budget:
        open_ = [f for f in families if hands[f]]
        # of equal ones the triplet that comes first
        f = min(open_, key=lambda f: (taken[f] / len(of[f]), hands[f][0]))
        kept.add(hands[f].pop(0))
        taken[f] += 1
    found = call(by_family(), case, budget)
    assert found.tolist() == [j in kept for j in range(len(case.scores))]


def test_by_family_evens_the_mean_rank_of_families_whatever_the_scores():
    modules = torch.arange(6).repeat_interleave(5)
    scores = torch.rand(30, generator=generator()) + 10.0 * (modules % 2)  # every key beats every query
    request = Request(scores, torch.ones(30, dtype=torch.bool), 18, torch.ones(30), modules, names=NAMES)
    mask = by_family()(request)
    per_family = [int(mask[modules % 2 == k].sum()) for k in (0, 1)]
    assert per_family == [9, 9]
    assert int(global_top()(request)[modules % 2 == 1].sum()) == 15


@pytest.mark.parametrize(
    "names", [["encoder.layers.0.q", "decoder.layers.0.q"], ["h.0.experts.0.up", "h.0.experts.1.up"]]
)
def test_stacks_and_experts_are_of_one_family(names):
    """Two modules of one family share the budget by score alone; two of different ones would get a triplet each."""
    scores, modules = torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([0, 0, 1, 1])
    request = Request(scores, torch.ones(4, dtype=torch.bool), 2, torch.ones(4), modules, names=names)
    assert by_family()(request).tolist() == [True, True, False, False]


@given(cases(), st.data())
def test_random_prunes_at_random_and_brings_nothing_back(case, data):
    budget = budget_of(case, data, 0, int(case.mask.sum()))
    assert not (call(random(), case, budget) & ~case.mask).any()


def test_random_is_fair_and_seeded_and_does_not_look_at_scores():
    rest = (torch.ones(8, dtype=torch.bool), 3, torch.ones(8), torch.zeros(8, dtype=torch.long))
    request, counts = Request(torch.arange(8.0), *rest, generator(1)), torch.zeros(8)
    for _ in range(4000):
        counts += random()(request)
    assert (counts / 4000 - 3 / 8).abs().max() < 0.04
    masks = [random()(Request(scores, *rest, generator(5))) for scores in (torch.arange(8.0), torch.zeros(8))]
    assert torch.equal(*masks)


@given(cases(), st.data())
def test_random_ranks_are_those_of_random_triplets_and_each_module_keeps_its_best(case, data):
    """Its ranks are those of `random` with the same draw, and within a module the scores choose, as with `uniform`."""
    budget = budget_of(case, data, 0, int(case.mask.sum()))
    kept, drawn = call(random(ranks_only=True), case, budget), call(random(), case, budget)
    assert ranks_of(kept, case) == ranks_of(drawn, case)
    for i, rank in enumerate(ranks_of(drawn, case)):
        best = set(falling(case, members(case, i))[:rank])
        assert {j for j in members(case, i) if kept[j]} == best


def grown_by_hand(case, budget, h, limit):
    """Round by round one free slot to each of the h best modules that have one; a new group when those are full."""
    kept = {j for j, on in enumerate(case.mask.tolist()) if on}
    on = [[j for j in members(case, i) if j in kept] for i in range(len(case.ranks))]
    mean = [sum(case.scores[j].item() for j in js) / max(len(js), 1) for js in on]
    grows = [i for i, r in enumerate(case.ranks) if len(on[i]) < min(r, limit)]
    best = sorted(grows, key=lambda i: -mean[i])
    groups = [best[k : k + h] for k in range(0, len(best), h)]
    rank = [len(js) for js in on]
    for group in groups:
        free = {i: [j for j in members(case, i) if j not in kept][: max(limit - rank[i], 0)] for i in group}
        while any(free.values()):
            for i in group:
                if free[i] and len(kept) < budget:
                    kept.add(free[i].pop(0))
                elif free[i]:
                    return kept
    return kept


@given(cases(), st.integers(1, 4), st.integers(1, 6), st.data())
def test_grow_gives_slots_in_turn_to_the_best_modules(case, h, limit, data):
    budget = budget_of(case, data, int(case.mask.sum()))
    kept = grown_by_hand(case, budget, h, limit)
    found = call(grow(h, max_rank=limit), case, budget)
    assert found.tolist() == [j in kept for j in range(len(case.scores))]


def test_grow_below_what_is_on_keeps_the_best_of_it():
    scores, mask = torch.tensor([1.0, 4.0, 2.0, 9.0]), torch.tensor([True, True, True, False])
    kept = grow()(Request(scores, mask, 2, torch.ones(4), torch.tensor([0, 0, 1, 1])))
    assert kept.tolist() == [False, True, True, False]


def exchanged_by_hand(case, b, k, by_module):
    """ElaLoRA's step: b candidates off, b slots on, while there are candidates and free slots; budget as it is."""
    on = [[j for j in members(case, i) if case.mask[j]] for i in range(len(case.ranks))]
    off = [[j for j in members(case, i) if not case.mask[j]] for i in range(len(case.ranks))]
    rising = [sorted(js, key=lambda j: case.scores[j].item()) for js in on]
    total = [sum(case.scores[j].item() for j in js) for js in on]

    def value(j):
        i = case.modules[j].item()
        return total[i] if by_module else case.scores[j].item()

    down = [(value(j), up, j) for js in rising for up, j in enumerate(js[: min(k, len(js) - 1)])]
    down = [j for _, _, j in sorted(down)][:b]
    up = []
    for i, js in enumerate(rising):
        worth = [value(j) for j in reversed(js[:k])]  # the best candidate brings the first free slot
        up += [(-v, j) for v, j in zip(worth, off[i], strict=False)]
    up = [j for _, j in sorted(up)][: len(down)]
    kept = {j for js in on for j in js}
    return (kept - set(down[: len(up)])) | set(up) if len(up) == len(down) else None


@pytest.mark.parametrize("worth", ["triplet", "module"])
@given(cases(), st.integers(1, 4), st.integers(1, 3), st.data())
def test_prune_expand_exchanges_the_lowest_candidates_for_slots_of_the_highest(worth, case, b, k, data):
    kept = exchanged_by_hand(case, b, k, worth == "module")
    found = call(prune_expand(b, k, worth), case, int(case.mask.sum()))
    assert found.sum() == case.mask.sum()
    if kept is not None and all(r == 0 or case.mask[members(case, i)].any() for i, r in enumerate(case.ranks)):
        assert found.tolist() == [j in kept for j in range(len(case.scores))]


def elalora_s_ranks(importance, k, b):
    """The ranks after its code's exchange (`mask_to_target_rank`). importance: one list for each module."""
    candidates = [
        (value, i) for i, values in enumerate(importance) for value in sorted(values)[: min(k, len(values) - 1)]
    ]
    ranks = [len(values) for values in importance]
    for _, i in sorted(candidates)[:b]:
        ranks[i] -= 1
    for _, i in sorted(candidates)[-b:]:
        ranks[i] += 1
    return ranks


@pytest.mark.parametrize("k", [1, 2, 3])
@given(st.data())
def test_elalora_s_exchange_is_that_of_its_code(k, data):
    """With any number of candidates k per module, and modules that stay at rank 1; importances differ."""
    ranks = data.draw(st.lists(st.integers(1, 5), min_size=2, max_size=7).filter(lambda ranks: max(ranks) > 1))
    values = data.draw(st.permutations(range(1, sum(ranks) + 1)))
    b = data.draw(st.integers(1, sum(min(k, rank - 1) for rank in ranks)))
    parts = iter(values)
    importance = [[float(next(parts)) for _ in range(rank)] for rank in ranks]
    room = k  # free slots of every module: as many as it can gain at once
    scores = torch.tensor([v for values in importance for v in [*values, *[-math.inf] * room]])
    mask = torch.tensor([on for rank in ranks for on in [True] * rank + [False] * room])
    modules = torch.arange(len(ranks)).repeat_interleave(torch.tensor(ranks) + room)
    allocator = prune_expand(b, k, min_rank_grows=False)
    kept = allocator(Request(scores, mask, sum(ranks), torch.ones(len(scores)), modules))
    assert torch.bincount(modules[kept], minlength=len(ranks)).tolist() == elalora_s_ranks(importance, k, b)
    if 1 in ranks:
        assert kept[modules == ranks.index(1)].sum() == 1


def increlora_s_ranks(importance, ranks, h, more, target):
    """The ranks after each of its code's steps (`increase_to_target_rank`) until it has the target, or more."""
    ranks, steps = list(ranks), []
    while sum(ranks) < target:
        threshold = sorted(importance, reverse=True)[: min(h, target - sum(ranks))][-1]
        ranks = [rank + more if value >= threshold else rank for rank, value in zip(ranks, importance, strict=True)]
        steps.append(ranks)
    return steps


def test_increlora_s_growth_is_that_of_its_code_but_for_the_overshoot():
    importance, ranks, h, more, target = [0.3, 0.9, 0.1, 0.7], [1] * 4, 3, 4, 32
    modules = torch.arange(4).repeat_interleave(16)
    scores = torch.tensor(importance)[modules]  # a module's importance is the mean over its active triplets
    mask = torch.arange(64) % 16 < 1
    theirs = increlora_s_ranks(importance, ranks, h, more, target)
    assert [sum(step) for step in theirs] == [16, 28, 40]
    for step in theirs:
        budget = min(sum(step), target)
        mask = grow(h)(Request(scores, mask, budget, torch.ones(64), modules))
        ours = torch.bincount(modules[mask], minlength=4).tolist()
        assert sum(ours) == budget
        assert ours == step or budget == target


@pytest.mark.parametrize(("progress", "expected"), [(0.0, 4), (0.5, 4), (0.8, 2), (0.95, 1), (1.0, 0)])
def test_the_exchange_falls_with_the_cube_of_the_progress(progress, expected):
    """ElaLoRA's code: round(b·(1 − p³)), here 4, 3.5 -> 4, 1.95 -> 2, 0.57 -> 1, 0."""
    modules = torch.arange(8).repeat_interleave(4)
    mask = (torch.arange(32) % 4) < 2
    scores = torch.rand(32, generator=generator())
    request = Request(scores, mask, 16, torch.ones(32), modules, progress=progress)
    assert (prune_expand(4)(request) & ~mask).sum() == expected
    assert (prune_expand(4, decay=False)(request) & ~mask).sum() == 4


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


@pytest.mark.parametrize("factory", [global_top, by_cost, random, prune_expand])
@pytest.mark.parametrize(
    ("clamps", "says"),
    [
        ({"min_rank": -1}, "allocator.min_rank must be a whole number of at least 0 (got -1)"),
        ({"min_rank": 3, "max_rank": 2}, "allocator.max_rank must be a whole number of at least 3, or null (got 2)"),
        ({"min_rank": 0, "max_rank": 0}, "allocator.max_rank must be a whole number of at least 1, or null (got 0)"),
    ],
)
def test_clamps_that_no_module_can_keep(factory, clamps, says):
    with pytest.raises(SettingError) as error:
        factory(**clamps)
    assert str(error.value) == says


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: grow(0), "allocator.top_h must be a whole number of at least 1 (got 0)"),
        (lambda: prune_expand(swaps=0), "allocator.swaps must be a whole number of at least 1 (got 0)"),
        (
            lambda: prune_expand(candidates_per_module=0),
            "allocator.candidates_per_module must be a whole number of at least 1 (got 0)",
        ),
    ],
)
def test_numbers_that_cannot_be(make, says):
    with pytest.raises(SettingError) as error:
        make()
    assert str(error.value) == says


@pytest.mark.parametrize(
    ("allocator", "unit", "budgets", "says"),
    [
        (
            global_top(min_rank=3),
            "triplets",
            (16, 8),
            "allocator.min_rank must be at most 2 (got 3, which takes 11 triplets over all modules, but the budget "
            "falls to 8)",
        ),
        (
            global_top(max_rank=1),
            "triplets",
            (14, 8),
            "allocator.max_rank must be at least 2 (got 1, which leaves room for 4 triplets over all modules, but the "
            "final budget is 8)",
        ),
        (
            threshold(),
            "parameters",
            (14, 8),
            "budget.unit must be triplets with this allocator, which counts triplets (got parameters)",
        ),
        (
            by_cost(),
            "triplets",
            (14, 8),
            "budget.unit must be parameters with this allocator, which counts parameters (got triplets)",
        ),
    ],
)
def test_a_run_whose_budgets_cannot_be_kept(allocator, unit, budgets, says):
    with pytest.raises(SettingError) as error:
        check_run(allocator, unit, [4, 4, 4, 2], [1] * 4, *budgets)
    assert str(error.value) == says


def test_clamps_that_just_fit_pass():
    check_run(global_top(2, 2), "triplets", [4, 4, 4, 2], [1] * 4, 14, 8)
    check_run(by_cost(2, 2), "parameters", [4, 4, 4, 2], [5, 6, 7, 8], 104, 52)


@given(cases(), st.data())
def test_before_the_final_budget_max_rank_may_leave_some_unused(case, data):
    budget = budget_of(case, data)
    kept = call(global_top(max_rank=2), case, budget)
    assert kept.sum() == min(budget, sum(min(2, r) for r in case.ranks))
    assert max(ranks_of(kept, case)) <= 2


@given(case=cases(), tau=st.sampled_from([0.05, 0.3, 0.7, 0.95]), least=st.integers(0, 3))
def test_tolerance_keeps_the_fewest_that_lose_less_than_tau(case, tau, least):
    """GeoLoRA's loop (arXiv 2410.18720) over each module's sorted scores; the budget has no say."""
    kept = tolerance(tau, min_rank=least)(case.request(0))
    for module, rank in enumerate(case.ranks):
        scores = case.scores[case.modules == module].double()
        falling = scores.sort(descending=True).values
        expected = rank
        for j in range(rank):
            if torch.linalg.norm(falling[j:]) < tau * torch.linalg.norm(falling) - 1e-12:
                expected = j
                break
        expected = min(max(expected, least), rank)
        chosen = kept[case.modules == module]
        assert int(chosen.sum()) == expected
        assert not expected or scores[chosen].min() >= falling[expected - 1]


def test_tolerance_is_each_modules_own_and_refuses_bad_settings():
    """A module whose scores are 1e6 times smaller is truncated by the same shares."""
    scores = torch.tensor([3.0, 1.0, 0.1, 0.01])
    both = torch.cat([scores * 1e6, scores])
    modules = torch.arange(2).repeat_interleave(4)
    request = Request(both, torch.ones(8, dtype=torch.bool), 1, torch.ones(8, dtype=torch.long), modules)
    assert tolerance(0.1, min_rank=0)(request).tolist() == [True, True, False, False] * 2
    assert tolerance(0.1, min_rank=0, max_rank=1)(request).sum() == 2
    none = request._replace(scores=torch.zeros(8))
    assert tolerance(0.1)(none).all(), "as in the authors' code"
    for tau in (0.0, 1.0, float("nan")):
        with pytest.raises(SettingError, match=r"allocator\.tau must be above 0 and below 1"):
            tolerance(tau)
