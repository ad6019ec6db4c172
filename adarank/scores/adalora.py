"""AdaLoRA's importance: smoothed sensitivity times its uncertainty (arXiv 2303.10512, eqs. 7–11)."""

from torch import Tensor

from adarank.bank import Bank
from adarank.scores.score import Buffers, Score, smoothing


def adalora(beta1: float = 0.85, beta2: float = 0.85) -> Score:
    """s(w) = Ī(w)·Ū(w) per parameter; a triplet's score is s(λ_i) + mean_j s(Q_ij) + mean_j s(P_ij).

    I = |w·g|;  Ī ← β1 Ī + (1−β1) I;  Ū ← β2 Ū + (1−β2) |I − Ī|, with the new Ī. Both start at zero, without bias
    correction. beta1, beta2: in [0, 1); else raises SettingError.
    """
    beta1, beta2 = smoothing("beta1", beta1), smoothing("beta2", beta2)

    def init(bank: Bank) -> Buffers:
        return {"importance": bank.buffer(), "uncertainty": bank.buffer()}

    def observe(buffers: Buffers, bank: Bank) -> None:
        importance, uncertainty = buffers["importance"], buffers["uncertainty"]
        sensitivity = (bank.weight.to(importance.dtype) * bank.grad).abs_()
        importance.lerp_(sensitivity, 1 - beta1)
        uncertainty.lerp_(sensitivity.sub_(importance).abs_(), 1 - beta2)

    def score(buffers: Buffers, bank: Bank) -> Tensor:
        return bank.triplet_sums(buffers["importance"] * buffers["uncertainty"])

    return Score(init, observe, score)
