"""Intruder dimensions: leading directions of the fine-tuned weight that the pretrained one lacks (arXiv 2410.21228)."""

import torch
from torch import Tensor

TOP = 10  # k and ε: the defaults of the authors' code and of PEFT's
EPSILON = 0.5


def intruders(before: Tensor, after: Tensor, top: int = TOP, epsilon: float = EPSILON) -> int:
    """How many of the `top` left singular vectors of W + ΔW have no left singular vector of W within cosine `epsilon`.

    before, after: W and W + ΔW, [d_out, d_in], dense. A vector u_j of `after` intrudes where max_i |u_jᵀ u_i| < ε over
    all min(d_out, d_in) left singular vectors of `before` (the paper's algorithm 1; as its code, by absolute value and on
    thin decompositions).
    """
    bases = (torch.linalg.svd(weight, full_matrices=False).U for weight in (before, after))
    old, new = bases
    cosine = (new[:, :top].t() @ old).abs().amax(1)
    return int((cosine < epsilon).sum())
