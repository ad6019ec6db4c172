"""SalientLoRA's salience: a triplet's λ over time, and its influence on other λ (Ke et al., NeurIPS 2024)."""

import torch
from torch import Tensor

from adarank.bank import Bank
from adarank.errors import number, whole_number
from adarank.scores.score import Buffers, Score, module_sums, refuse_constant_lambda


def salience(window: int = 200, correlation: float = 0.9, slope: float = 2.0, influence: float = 1.0) -> Score:
    """Magnitude plus influence domain, over the time series of λ since the last allocation.

    magnitude: m_i = Σ_t R_t |λ_i(t)|, divided by its sum over the module. R_t is 1/ℓ_t, scaled to [0, 1] over the
        series, and ℓ_t is the orthogonality loss at step t: steps at which λ is closer to a singular value count more.
    influence domain: there is an edge i → j if the correlation of λ_i and λ_j is at least `correlation` and the
        regression of λ_j on λ_i has a slope b_ij of at least `slope`. d_i = Σ_j b_ij d_j over i's edges, where a
        triplet without edges counts 1; it is divided by the sum of d over all triplets with edges, and is 0 for the
        others.

    The paper first removes the weakest edge of every cycle (Algorithm 1). There are no cycles: b_ij = r_ij σ_j/σ_i, so
    that the product of the slopes around a cycle equals that of the correlations, at most 1, but would have to be at
    least slopeᵏ > 1. Sorted by σ, the graph is triangular, and d is the solution of one triangular system.

    window: the maximum length of the series in steps. correlation: above 0, at most 1. slope: above 1. influence: at
    least 0, the weight of the domain (the authors' code: 1). Raises SettingError for other values; `init` raises it for
    adapters with constant λ.
    """
    window = whole_number("score.window", window)
    correlation = number("score.correlation", correlation, "above 0 and at most 1", lambda r: 0 < r <= 1)
    slope = number("score.slope", slope, "above 1", lambda b: b > 1)
    influence = number("score.influence", influence, "at least 0", lambda w: w >= 0)
    refuse = refuse_constant_lambda("salience")

    def init(bank: Bank) -> Buffers:
        refuse(bank)
        one = bank.triplet_buffer()
        series = one.unsqueeze(1).repeat(1, window)  # the newest step is the last column
        count, ended = one.new_zeros(()), one.new_zeros(())
        return {"lam": series, "loss": series.clone(), "count": count, "ended": ended}

    def observe(buffers: Buffers, bank: Bank) -> None:
        now = {"lam": bank.lam, "loss": bank.orthogonality_norms().sum().expand(bank.triplets)}
        for name, values in now.items():
            series = buffers[name]
            series.copy_(torch.cat([series[:, 1:], values.to(series.dtype).unsqueeze(1)], 1))
        count, ended = buffers["count"], buffers["ended"]
        count.copy_(torch.where(ended > 0, 0, count).add(1).clamp(max=window))
        ended.zero_()

    def restart(buffers: Buffers, bank: Bank) -> None:
        buffers["ended"].fill_(1)  # keep the series until the next step

    def score(buffers: Buffers, bank: Bank) -> Tensor:
        lam, loss = buffers["lam"].double(), buffers["loss"].double()
        recorded = torch.arange(window, device=lam.device) >= window - buffers["count"]
        found = _magnitude(lam, loss[0], recorded, bank) + influence * _domain(lam, recorded, correlation, slope)
        return found.to(bank.dtype)

    return Score(init, observe, score, restart=restart)


def _magnitude(lam: Tensor, loss: Tensor, recorded: Tensor, bank: Bank) -> Tensor:
    """Each triplet's share of its module's Σ_t R_t |λ(t)|, [triplets]. lam: [triplets, window]; loss, recorded:
    [window]."""
    tiny = torch.finfo(lam.dtype).tiny
    inverse = 1 / loss.clamp_min(tiny)
    low = inverse.masked_fill(~recorded, torch.inf).amin()
    spread = inverse.masked_fill(~recorded, -torch.inf).amax() - low
    R = torch.where(spread > 0, (inverse - low) / spread, torch.ones_like(inverse))
    total = (lam.abs() * torch.where(recorded, R, 0.0)).sum(1)
    return total / module_sums(total, bank).clamp_min(tiny)[bank.module]


def _domain(lam: Tensor, recorded: Tensor, correlation: float, slope: float) -> Tensor:
    """Each triplet's share of the total influence, [triplets]."""
    tiny = torch.finfo(lam.dtype).tiny
    lam = torch.where(recorded, lam, 0.0)
    mean = lam.sum(1, keepdim=True) / recorded.sum().clamp_min(1)
    centred = torch.where(recorded, lam - mean, 0.0)
    order = centred.square().sum(1).argsort(stable=True)
    products = centred[order] @ centred[order].t()
    variance = products.diagonal()
    sigma = variance.sqrt()
    slopes = products / variance.clamp_min(tiny).unsqueeze(1)
    correlations = products / (sigma.unsqueeze(1) * sigma).clamp_min(tiny)
    slopes = torch.where((correlations >= correlation) & (slopes >= slope), slopes, 0.0).triu(1)
    leaf = (slopes == 0).all(1)
    identity = torch.eye(len(slopes), dtype=lam.dtype, device=lam.device)
    d = torch.linalg.solve_triangular(identity - slopes, leaf.to(lam.dtype).unsqueeze(1), upper=True).squeeze(1)
    d = torch.where(leaf, 0.0, d)
    found = torch.empty_like(d)
    found[order] = d / d.sum().clamp_min(tiny)
    return found
