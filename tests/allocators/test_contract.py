"""What every allocator in conf/allocator keeps to, whoever wrote it."""

import inspect
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch.utils._python_dispatch import TorchDispatchMode

from adarank.allocators.allocator import Request
from adarank.harness.config.validate import conf_folder, locate
from tests.allocators.cases import NAMES, cases, generator, ranks_of

READS_BACK = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal.default", "unique")
# Tested elsewhere: AdaLoRA's rule, which keeps fewer triplets if scores tie (test_allocators.py); what training left,
# whatever the budget, and whole prefixes only (tests/methods).
OWN_LAW = {"threshold", "nonzero", "one_by_one", "prefix", "tolerance"}
ABSOLUTE = {"one_by_one"}  # compares scores with a number, not with each other
GROWS = {"grow"}  # turns nothing off while the budget does not fall
UNITS = ("triplets", "parameters")


def options():
    """(name, call) of every YAML whose function makes an allocator; a map of ranks takes `limits` and makes none."""
    found = {}
    for path in sorted(Path(conf_folder(), "allocator").glob("*.yaml")):
        node = OmegaConf.to_container(OmegaConf.load(path))
        target = node.pop("_target_")
        if target is not None and "limits" not in inspect.signature(locate(target)).parameters:
            found[path.stem] = (locate(target), node)
    return found


OPTIONS = options()


def made(name, **clamps):
    function, settings = OPTIONS[name]
    parameters = inspect.signature(function).parameters
    return function(**{**settings, **{k: v for k, v in clamps.items() if k in parameters}})


def units(name):
    unit = getattr(made(name), "unit", None)
    return UNITS if unit is None else (unit,)


def apply(allocator, case, budget, seed=0):
    return allocator(case.request(budget, seed))


PAIRS = [(name, unit) for name in OPTIONS for unit in units(name)]


def test_the_walk_finds_them():
    assert {
        "global_bottom",
        "global_top",
        "by_cost",
        "by_family",
        "grow",
        "prune_expand",
        "random",
        "uniform",
    } <= OPTIONS.keys()


@pytest.mark.parametrize(("name", "unit"), PAIRS)
@given(data=st.data())
def test_the_budget_is_kept(name, unit, data):
    """Exactly in triplets; in parameters it is never exceeded, and less than the most expensive triplet is left."""
    case = data.draw(cases(unit))
    allocator = made(name, min_rank=0)
    budget = data.draw(st.integers(0, int(case.costs.sum())))
    kept = apply(allocator, case, budget)
    spent = int(case.costs[kept].sum())
    if not getattr(allocator, "keeps_budget", True):
        return
    assert spent <= budget
    if name in OWN_LAW:
        return
    if unit == "triplets":
        assert spent == budget
    elif not kept.all():
        assert budget - spent < case.costs.max()


@pytest.mark.parametrize(("name", "unit"), PAIRS)
@given(data=st.data())
def test_it_is_pure_and_seeded(name, unit, data):
    case = data.draw(cases(unit))
    allocator = made(name)
    budget = data.draw(st.integers(0, int(case.costs.sum())))
    before = [t.clone() for t in (case.scores, case.mask, case.costs, case.modules)]
    first, second = apply(allocator, case, budget), apply(allocator, case, budget)
    assert torch.equal(first, second)
    assert first.dtype == torch.bool
    assert all(torch.equal(a, b) for a, b in zip(before, case[:4], strict=True))
    assert first.untyped_storage().data_ptr() != case.mask.untyped_storage().data_ptr()


@pytest.mark.parametrize(("name", "unit"), [pair for pair in PAIRS if pair[0] not in ABSOLUTE])
@given(data=st.data())
def test_ties_fall_the_same_way_whatever_the_scores_are_scaled_by(name, unit, data):
    """Powers of two scale exactly, so that ties stay ties and the order is the same."""
    case = data.draw(cases(unit))
    allocator = made(name)
    budget = data.draw(st.integers(0, int(case.costs.sum())))
    for factor in (2.0, 2.0**-20, 0.0):
        scaled = case._replace(scores=case.scores * factor)
        found = apply(allocator, scaled, budget)
        if factor:
            assert torch.equal(found, apply(allocator, case, budget))
        else:
            assert torch.equal(found, apply(allocator, scaled._replace(scores=torch.zeros_like(case.scores)), budget))


@pytest.mark.parametrize("name", sorted(OPTIONS.keys() - OWN_LAW))
@given(data=st.data())
def test_each_module_keeps_its_clamps(name, data):
    low, high = data.draw(st.integers(0, 2)), data.draw(st.integers(2, 5))
    unit = units(name)[0]
    case = data.draw(cases(unit, most_on=high))
    allocator = made(name, min_rank=low, max_rank=high)
    low = getattr(allocator, "min_rank", 0)
    high = high if allocator.max_rank is None else allocator.max_rank
    costs = [int(case.costs[case.modules == i].max()) if r else 0 for i, r in enumerate(case.ranks)]
    least = sum(min(low, r) * c for r, c in zip(case.ranks, costs, strict=True))
    most = sum(min(high, r) * c for r, c in zip(case.ranks, costs, strict=True))
    budget = data.draw(st.integers(least, most))
    found = ranks_of(apply(allocator, case, budget), case)
    assert all(rank >= min(low, r) for rank, r in zip(found, case.ranks, strict=True))
    if allocator.max_rank is not None:
        assert max(found) <= high
    if unit == "triplets":
        assert sum(found) == budget


@pytest.mark.parametrize("name", sorted(OPTIONS))
@given(data=st.data())
def test_what_is_off_has_no_say_where_pruned_triplets_are_frozen(name, data):
    """Then their scores are −∞: nothing that is off comes on while the budget pays only for what is on, unless the
    allocator is one that exchanges; and where it grows, only slots that were off come on."""
    case = data.draw(cases(units(name)[0]))
    allocator = made(name, min_rank=0)
    frozen = case._replace(scores=case.scores.masked_fill(~case.mask, -torch.inf))
    on = int(case.costs[case.mask].sum())
    budget = data.draw(st.integers(0, int(case.costs.sum())))
    found = apply(allocator, frozen, budget)
    if name in GROWS and budget >= on:
        assert (found & case.mask).equal(case.mask)
    if budget <= on and name in ("global_top", "global_bottom", "random", "grow"):
        assert not (found & ~case.mask).any()
    if budget >= on and name in ("global_top", "global_bottom", "random"):
        assert (found & case.mask).equal(case.mask)


class NoReadBack(TorchDispatchMode):
    """Raises where a value is read back from the device, or a size depends on one."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert not any(word in str(function) for word in READS_BACK), f"{function} reads back from the device"
        assert not (
            "index" in str(function)
            and any(
                isinstance(i, torch.Tensor) and i.dtype == torch.bool
                for a in args
                if isinstance(a, list | tuple)
                for i in a
            )
        ), f"{function} indexes with a mask"
        return function(*args, **(kwargs or {}))


def test_the_watch_notices_reading_back():
    x = torch.arange(3.0)
    for read in (lambda: x.sum().item(), lambda: x[x > 1], lambda: bool((x > 1).any()), lambda: x.nonzero()):
        with pytest.raises(AssertionError), NoReadBack():
            read()


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_nothing_is_read_back_from_the_device(name):
    modules = torch.arange(3).repeat_interleave(4)
    allocator = made(name)
    scores, mask = torch.rand(12, generator=generator()), torch.arange(12) % 4 < 2
    request = Request(scores, mask, 7, torch.ones(12, dtype=torch.long), modules, generator(), NAMES[:3])
    with NoReadBack():
        allocator(request)
