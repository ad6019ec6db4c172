"""|λ|: AdaLoRA's magnitude control (arXiv 2303.10512, Table 4)."""

from torch import Tensor

from adarank.bank import Bank
from adarank.scores.score import Buffers, Score, refuse_constant_lambda


def magnitude() -> Score:
    """A triplet's score is |λ_i|. Nothing is averaged. `init` raises SettingError for adapters with constant λ."""

    def score(buffers: Buffers, bank: Bank) -> Tensor:
        return bank.lam.to(bank.dtype).abs()

    return Score(refuse_constant_lambda("magnitude"), score=score)
