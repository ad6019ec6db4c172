"""How far ΔW amplifies directions that W hardly used (LoRA, arXiv 2106.09685, §7.3)."""

from typing import NamedTuple

from torch import Tensor

from adarank.harness.delta.change import Change


class Amplification(NamedTuple):
    """directions: k; factor: ‖ΔW_k‖_F / ‖U_kᵀ W V_k‖_F; random: the same for k random directions on either side."""

    directions: int
    factor: float
    random: float


def amplification(weight: Tensor, change: Change, directions: int) -> Amplification | None:
    """The factor of §7.3 over the top k = min(directions, rank) singular directions of ΔW; None where nothing changed.

    weight: W [d_out, d_in], float64. U_kᵀ W V_k is the part of W in ΔW's own directions; were they random, the square of
    its norm would be ‖W‖_F² k² / (d_out d_in) on average. The paper takes all r directions; a limit makes full fine-tuning,
    whose ΔW has full rank, comparable.
    """
    k = min(directions, len(change.sigma))
    U, sigma, V = change.U[:, :k], change.sigma[:k], change.V[:, :k]
    norm = float(sigma.norm())
    if norm == 0.0:
        return None
    inside = float((U.t() @ weight @ V).norm())
    d_out, d_in = weight.shape
    expected = float(weight.norm()) * k / (d_out * d_in) ** 0.5
    return Amplification(k, norm / inside if inside else float("inf"), norm / expected if expected else float("inf"))
