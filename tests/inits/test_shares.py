"""FIM-LoRA's and RaLoRA's ranks against their definitions in NumPy (float64)."""

import numpy as np
import pytest
import torch

import adarank
from adarank import SettingError
from adarank.inits import fisher, ralora
from adarank.inits.ralora import effective_rank
from adarank.inits.shares import Weight, in_proportion
from tests.inits.conftest import Classifier, some_batches

R = 4


def build():
    torch.manual_seed(0)
    return Classifier(torch.float64)


def gradients(batches):
    """{module: [the gradient of its weight for each batch]}."""
    model = build().eval()
    names = [n for n, _ in model.named_modules() if n.endswith(("up", "down"))]
    found = {n: [] for n in names}
    for batch in batches:
        model.zero_grad()
        model(**batch).loss.backward()
        for n in names:
            found[n].append(model.get_submodule(n).weight.grad.numpy().copy())
    return found


def measured(init, batches):
    model = build()
    return init.measure(model, dict.fromkeys(gradients([]), R), batches)


def test_fisher_is_the_squared_gradient_of_B_in_expectation_over_A():
    batches = some_batches(4, dtype=torch.float64)
    found, draw = measured(fisher(steps=3), batches), np.random.default_rng(0)
    for name, Gs in gradients(batches[:3]).items():
        assert found[name].value == pytest.approx(np.mean([(G**2).mean() for G in Gs]), rel=1e-10)
        bound = Gs[0].shape[1] ** -0.5
        of_B = [((G @ draw.uniform(-bound, bound, (8, G.shape[1])).T) ** 2).mean() for G in Gs for _ in range(2000)]
        assert found[name].value / 3 == pytest.approx(np.mean(of_B), rel=0.05)


def test_ralora_is_the_effective_rank_of_the_mean_gradient():
    batches = some_batches(4, dtype=torch.float64)
    found = measured(ralora(steps=4), batches)
    for name, Gs in gradients(batches).items():
        sigma = np.sqrt(np.maximum(np.linalg.eigvalsh(np.mean(Gs, 0) @ np.mean(Gs, 0).T), 0))
        p = [s / sigma.sum() for s in sigma if s > 0]
        assert found[name].value == pytest.approx(np.exp(-sum(x * np.log(x) for x in p)), rel=1e-6)
        assert 1 <= found[name].value <= found[name].limit


def test_effective_rank_by_hand():
    assert effective_rank(torch.eye(5)) == pytest.approx(5)
    assert effective_rank(torch.ones(4, 6)) == pytest.approx(1, abs=1e-4)
    assert effective_rank(torch.zeros(3, 3)) == 1


@pytest.mark.parametrize("make", [fisher, ralora])
@pytest.mark.parametrize("kind", ["svd", "lora"])
def test_ranks_are_in_proportion_within_their_bounds(make, kind):
    batches = some_batches(4, dtype=torch.float64)
    values = {n: w.value for n, w in measured(make(steps=4), batches).items()}
    adapters = adarank.adapt(build(), kind, rank=R, init=make(steps=4, min_rank=0, most=50.0), batches=batches)
    ranks = {n: a.rank for n, a in adapters.items()}
    assert sum(ranks.values()) == R * len(ranks)
    free = [n for n, rank in ranks.items() if rank < 8]  # the smaller side of every matrix
    left = sum(ranks[n] for n in free)
    assert len({ranks[n] for n in free}) > 1
    for n in free:
        assert abs(ranks[n] - left * values[n] / sum(values[m] for m in free)) < 1
    held = adarank.adapt(build(), kind, rank=R, init=make(steps=4, min_rank=3, most=1.25), batches=batches)
    assert {3, 5} >= {a.rank for a in held.values()} - {4}
    assert sum(a.rank for a in held.values()) == R * len(held)


def test_shares_are_fim_lora_s_rule_where_its_lower_bound_does_not_bind():
    """The rule written out: at most 2r, whose excess goes to the others, then largest remainders."""
    draw = np.random.default_rng(1)
    for _ in range(200):
        values = draw.lognormal(0, 0.6, 12)
        fixed, free, budget = {}, list(range(12)), 12.0 * R
        while True:
            raw = {i: values[i] / sum(values[j] for j in free) * budget for i in free}
            over = [i for i in free if int(raw[i]) >= 2 * R]
            if not over:
                break
            fixed |= dict.fromkeys(over, 2 * R)
            budget -= 2 * R * len(over)
            free = [i for i in free if i not in fixed]
        whole = {i: int(raw[i]) for i in free}
        for i in sorted(free, key=lambda i: whole[i] - raw[i])[: round(budget) - sum(whole.values())]:
            whole[i] += 1
        if min(whole.values()) < 1:
            continue
        found = in_proportion(1, 2.0)(
            {str(i): Weight(v, 99) for i, v in enumerate(values)}, dict.fromkeys(map(str, range(12)), R)
        )
        assert list(found.values()) == [(fixed | whole)[i] for i in range(12)]


@pytest.mark.parametrize("make", [fisher, ralora])
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"min_rank": -1}, r"init\.min_rank must be a whole number of at least 0 \(got -1\)"),
        ({"most": 0.5}, r"init\.most must be at least 1 \(got 0.5\)"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, settings, says):
    with pytest.raises(SettingError, match=says):
        make(**settings)
