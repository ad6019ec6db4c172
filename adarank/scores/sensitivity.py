"""Raw sensitivity: AdaLoRA's control s = I (arXiv 2303.10512, eqs. 7 and 8, Table 4)."""

from adarank.scores.score import Score
from adarank.scores.smoothed_sensitivity import smoothed_sensitivity


def sensitivity() -> Score:
    """I = |w·g| of the last step; a triplet's score is I(λ_i) + mean_j I(Q_ij) + mean_j I(P_ij)."""
    return smoothed_sensitivity(beta=0.0)
