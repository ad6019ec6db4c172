"""Keeps the triplets that training left non-zero, without a budget (SoRA, arXiv 2311.11696)."""

from adarank.allocators.allocator import Allocator


def nonzero() -> Allocator:
    """Keep every triplet whose score is above 0 (λ ≠ 0, with the score |λ|); the budget is ignored.

    For methods that make λ exactly zero, such as SoRA with its proximal step.
    """
    return Allocator(lambda request: request.scores > 0, keeps_budget=False)
