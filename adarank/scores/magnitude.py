"""|λ|: AdaLoRA's magnitude control (arXiv 2303.10512, Table 4)."""

from torch import Tensor

from adarank.bank import Bank
from adarank.scores.score import Buffers, Score, check_lam_learns


def magnitude() -> Score:
    """A triplet's score is |λ_i|; nothing is averaged. Refuses adapters whose λ is constant (SettingError)."""

    def init(bank: Bank) -> Buffers:
        check_lam_learns("magnitude", bank)
        return {}

    def observe(buffers: Buffers, bank: Bank) -> None:
        """λ is read when it is asked for."""

    def score(buffers: Buffers, bank: Bank) -> Tensor:
        return bank.lam.to(bank.dtype).abs()

    return Score(init, observe, score)
