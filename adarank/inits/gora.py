"""GoRA (arXiv 2502.12171): ranks and B from the gradient of the pre-trained weights."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from adarank.adapters.layers import known_layer
from adarank.adapters.lowrank import LowRank
from adarank.errors import SettingError, number
from adarank.inits.gradients import weight_gradients
from adarank.inits.init import Init, write


class Found(NamedTuple):
    """G: the mean gradient [d_out, d_in], on the CPU; importance: mean |W ⊙ G|."""

    G: Tensor
    importance: float


def gora(
    steps: int = 32,
    step: float = 0.05,
    least: float = 0.5,
    most: float = 4.0,
    shares: Literal["paper", "script"] = "paper",
    own_scale: bool = False,
) -> Init:
    """Ranks in proportion to importance, and ΔW₀ = −step·√(d_in / r)·G A⁺A, a descent step in A's row space.

    ranks: r_i ∝ I_i / √(d_in + d_out), I = mean |W ⊙ G|, from `least` to `most` times the requested rank (the paper's
    r_min and r_max). The paper rounds and clips each rank, so that the total drifts; here the proportionality factor is
    chosen so that the clipped ranks have the requested total, and rounding is by largest remainder. shares="script":
    the rule that the authors' released scripts run, ⌊[B·I_i / ΣI] / (d_in + d_out)⌋ with B = Σ r·(d_in + d_out),
    clipped; the total is not kept.
    factors: A ~ U(±1/√d_in), B = −ξ·G Aᵀ(AAᵀ)⁻¹ with s·ξ = step·√(d_in / r): the
    projection keeps about r/d_in of ‖G‖², so that ‖ΔW₀‖ ≈ step·‖G‖. G: the mean over `steps` batches. The paper does
    *not* subtract ΔW₀ from the base: training starts one step ahead, with the same ΔW₀ whatever s is. own_scale: s
    follows the module's own rank, α/r_i (α/√r_i with rslora, the scripts' scale), instead of the requested one; needs
    alpha.
    """
    if shares not in (known := ("paper", "script")):
        raise SettingError(f"init.shares must be one of {', '.join(known)} (got {shares!r})")
    step = number("init.step", step, "at least 0", lambda s: s >= 0)
    least = number("init.least", least, "from 0 to 1", lambda f: 0 <= f <= 1)
    most = number("init.most", most, "at least 1", lambda f: f >= 1)

    @torch.no_grad()
    def measure(model: nn.Module, asked: Mapping[str, int], batches: Iterable[Any]) -> dict[str, Found]:
        found = {}
        for name, G in weight_gradients(model, asked, batches, steps, "gora").items():
            base = model.get_submodule(name)
            W = known_layer(base).matrix(base)
            found[name] = Found(G, (W * G.to(W.device)).abs().mean().item())
        return found

    def ranks(found: Mapping[str, Found], asked: Mapping[str, int]) -> dict[str, int]:
        importance = {n: found[n].importance for n in asked}
        sizes = {n: sum(found[n].G.shape) for n in asked}
        low = [math.ceil(least * r) for r in asked.values()]
        high = [min(math.floor(most * r), *found[n].G.shape) for n, r in asked.items()]
        if shares == "script":
            budget, total = sum(r * sizes[n] for n, r in asked.items()), sum(importance.values()) or 1.0
            drawn = [round(budget * importance[n] / total) // sizes[n] for n in asked]
            return {n: min(max(r, lo), hi) for n, r, lo, hi in zip(asked, drawn, low, high, strict=True)}
        weights = [importance[n] / math.sqrt(sizes[n]) for n in asked]
        return dict(zip(asked, share(weights, low, high, sum(asked.values())), strict=True))

    def fill(adapter: LowRank, found: Found) -> None:
        d_in, r = adapter.in_features, adapter.rank
        A = torch.empty_like(adapter.Q).uniform_(-1 / math.sqrt(d_in), 1 / math.sqrt(d_in))
        if r:
            basis, R = torch.linalg.qr(A.t())
            Bt = torch.linalg.solve_triangular(R, (found.G.to(A) @ basis).t(), upper=True)  # (G A⁺)ᵀ
            write(adapter, A, -step * math.sqrt(d_in / r) / adapter.scale * Bt)

    return Init("gora", fill, measure, ranks, own_scale=own_scale)


def share(weights: Sequence[float], low: Sequence[int], high: Sequence[int], total: int) -> list[int]:
    """Whole numbers in proportion to `weights`, within [low, high], that sum to `total` (Σ low ≤ total ≤ Σ high).

    The shares t·w_i are clipped, with t chosen so that they sum to `total`, and rounded down; the rest goes to the
    largest remainders (ties to the first). Weights are raised to 1e-9 of the largest; if all are 0, they count as
    equal.
    """
    top = max(weights)
    w = [max(x / top, 1e-9) if top > 0 else 1.0 for x in weights]

    def clipped(t: float) -> list[float]:
        return [min(max(t * x, lo), hi) for x, lo, hi in zip(w, low, high, strict=True)]

    below, above = 0.0, 1e9 * max(high) + 1.0  # at these, every share is at its low or at its high
    for _ in range(200):
        t = (below + above) / 2
        below, above = (t, above) if sum(clipped(t)) < total else (below, t)
    exact = clipped(above)
    whole = [math.floor(x + 1e-9) for x in exact]
    by_remainder = sorted(range(len(w)), key=lambda i: whole[i] - exact[i])
    while (left := total - sum(whole)) > 0:
        open_to_more = [i for i in by_remainder if whole[i] < high[i]]
        for i in open_to_more[:left]:
            whole[i] += 1
    return whole
