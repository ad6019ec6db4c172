"""Triplets of several modules, drawn by hypothesis: what the tests of allocators share."""

from typing import NamedTuple

import torch
from hypothesis import strategies as st

from adarank.allocators.allocator import Request

NAMES = ["layers.0.query", "layers.0.key", "layers.1.query", "layers.1.key", "layers.2.query", "layers.2.key"]


class Case(NamedTuple):
    scores: torch.Tensor
    mask: torch.Tensor
    costs: torch.Tensor
    modules: torch.Tensor
    ranks: list[int]

    def request(self, budget, seed=0, **more):
        names = NAMES[: len(self.ranks)]
        return Request(self.scores, self.mask, budget, self.costs, self.modules, generator(seed), names, **more)


@st.composite
def cases(draw, unit="triplets", most_on=None):
    """Up to six modules of zero to five triplets, tied scores, any mask with at most `most_on` on in a module."""
    ranks = draw(st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any))
    n = sum(ranks)
    modules = torch.arange(len(ranks)).repeat_interleave(torch.tensor(ranks))
    scores = torch.tensor(draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0, 3.5]), min_size=n, max_size=n)))
    mask = torch.tensor(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    for i in range(len(ranks)) if most_on is not None else ():
        mask &= ~((modules == i) & ((mask & (modules == i)).cumsum(0) > most_on))
    costs = torch.ones(len(ranks), dtype=torch.long)
    if unit == "parameters":
        costs = torch.tensor(draw(st.lists(st.integers(3, 30), min_size=len(ranks), max_size=len(ranks))))
    return Case(scores, mask, costs[modules], modules, ranks)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def ranks_of(mask, case):
    return torch.bincount(case.modules[mask], minlength=len(case.ranks)).tolist()
