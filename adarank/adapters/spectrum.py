"""Measures of the effective number of directions in a weight change, from its singular values."""

import torch
from torch import Tensor


def effective_rank(sigma: Tensor) -> float:
    """exp(H(p)), p_i = σ_i / Σσ, H the entropy (Roy and Vetterli 2007, eq. 2–3): k for k equal values, 0 for none."""
    total = sigma.sum()
    return float(torch.exp(torch.special.entr(sigma / total).sum())) if total > 0 else 0.0


def stable_rank(sigma: Tensor) -> float:
    """‖ΔW‖_F² / ‖ΔW‖₂² = Σσ² / σ₁² (Rudelson and Vershynin 2007): at most the rank; 0 if nothing changed."""
    largest = sigma.max() if len(sigma) else 0.0
    return float((sigma / largest).square().sum()) if largest > 0 else 0.0
