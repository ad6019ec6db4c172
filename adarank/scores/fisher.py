"""Empirical Fisher information: averaged squared gradients."""

from torch import Tensor

from adarank.bank import Bank
from adarank.scores.score import Score, averaged


def fisher(beta: float = 0.85, weighted: bool = False) -> Score:
    """F ← β F + (1−β) g² per element; a triplet's score is F(λ_i) + mean_j F(Q_ij) + mean_j F(P_ij).

    g is the gradient of the whole optimiser step, not of one example, so that F is the diagonal of the empirical Fisher
    information up to what averaging over the batch takes away; per triplet as AdaLoRA's eq. 7. By default g² alone: how
    much the loss's gradient asks of a parameter, whatever its value (FISH mask, arXiv 2111.09839). weighted: (w·g)²,
    which is twice the loss that removing w costs (arXiv 1801.05787; optimal brain damage with F for the curvature);
    w is that of its own step.
    beta: in [0, 1). Raises SettingError outside.
    """

    def squares(bank: Bank) -> Tensor:
        g = bank.grad.to(bank.dtype)
        return (g * bank.weight if weighted else g).square()

    return averaged(squares, beta)
