"""|λ| (arXiv 2303.10512, Table 4)."""

from adarank.scores.score import Score


def magnitude() -> Score:
    """A triplet's score is |λ_i|; nothing is averaged."""
    return Score(init=lambda bank: {}, observe=lambda buffers, bank: None, score=lambda buffers, bank: bank.lam.abs())
