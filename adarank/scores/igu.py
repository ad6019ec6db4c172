"""IGU-LoRA's importance: sensitivity along the path from the base to the adapted model (arXiv 2603.13792)."""

from typing import Literal

import torch
from torch import Tensor

from adarank.bank import Bank
from adarank.errors import SettingError, number, whole_number
from adarank.pieces import needs
from adarank.scores.adalora import adalora
from adarank.scores.random import mix
from adarank.scores.score import Buffers, Score


@needs("seed")
def igu(
    points: int = 20,
    beta1: float = 0.85,
    beta2: float = 0.85,
    form: Literal["ratio", "product"] = "ratio",
    eps: float = 1e-6,
    seed: int | None = None,
) -> Score:
    """s(w) = Ī/Ū of |w·g|, with g at a random point c on the path, summed per triplet as in AdaLoRA's eq. 7.

    Integrated gradients average g over the path c·(P, λ, Q), c from 0 to 1, on which ΔW becomes c³ΔW. The authors' code
    uses one point per step, c ~ U{1/points, …, 1}: the whole training pass computes with c³ΔW, so that training, too,
    happens at c, and the moving average Ī replaces the integral. Once the ranks are final, c is 1. points=1: no path.

    form: "ratio", (Ī + eps)/(Ū + eps), the authors' code; "product", Ī·Ū, AdaLoRA's form on these gradients. Ī, Ū: as
    in `adalora`. seed: the seed of c; None means the run's seed in the laboratory, and 0 elsewhere. The points are a
    hash of seed and step, equal on every device and in every process. Raises SettingError for points below 1, beta1 or
    beta2 outside [0, 1), another form, or eps of 0 or less; `init` raises it for adapters other than plain low-rank
    ones.
    """
    points = whole_number("score.points", points)
    eps = number("score.eps", eps, "above 0", lambda e: e > 0)
    seed = 0 if seed is None else whole_number("score.seed", seed, 0)
    if form not in ("ratio", "product"):
        raise SettingError(f"score.form must be one of ratio, product (got {form!r})")
    averages = adalora(beta1, beta2)

    def draw(buffers: Buffers) -> None:
        key = mix(buffers["steps"].long() ^ (seed + 1) * 0x9E3779B9 % 2**32)
        buffers["path"].copy_((((mix(key) % points) + 1).to(buffers["path"].dtype) / points) ** 3)

    def init(bank: Bank) -> Buffers:
        if other := next((a.kind for a in bank.adapters if not a.parametrisation.is_plain), None):
            raise SettingError(
                f"score=igu needs adapters that add s·P·diag(λ)·Q to the weight, such as adapter='svd' (got {other!r})"
            )
        one = bank.triplet_buffer().new_ones(())
        buffers = averages.init(bank) | {"steps": torch.zeros_like(one), "path": one}
        draw(buffers)
        return buffers

    def observe(buffers: Buffers, bank: Bank) -> None:
        averages.observe(buffers, bank)
        buffers["steps"].add_(1)
        draw(buffers)

    def score(buffers: Buffers, bank: Bank) -> Tensor:
        if form == "product":
            return averages.score(buffers, bank)
        return bank.triplet_sums((buffers["importance"] + eps) / (buffers["uncertainty"] + eps))

    return Score(init, observe, score)
