"""A control: random scores, drawn once."""

import torch
from torch import Tensor

from adarank.bank import Bank
from adarank.errors import whole_number
from adarank.pieces import needs
from adarank.scores.score import Buffers, Score


@needs("seed")
def random(seed: int | None = None) -> Score:
    """A random number in (0, 1] for every triplet, the same at every step.

    The rank map is random, but training is as stable as with an informed score, because a pruned triplet stays pruned
    while the budget falls. The numbers are a hash of seed and index, equal on every device; a triplet that restarts
    gets a number again.

    seed: None means the run's seed in the laboratory, and 0 elsewhere.
    """

    seed = 0 if seed is None else whole_number("score.seed", seed, 0)

    def draw(bank: Bank) -> Tensor:
        index = torch.arange(bank.triplets, device=bank.mask.device)
        seeded = mix(torch.full_like(index, (seed + 0x9E3779B9) % 2**32))
        return (mix(seeded ^ index) + 1).to(bank.dtype) / 2**32

    def init(bank: Bank) -> Buffers:
        return {"number": draw(bank)}

    def observe(buffers: Buffers, bank: Bank) -> None:
        number = buffers["number"]
        number.copy_(torch.where(number == 0, draw(bank), number))

    def score(buffers: Buffers, bank: Bank) -> Tensor:
        return buffers["number"].clone()

    return Score(init, observe, score)


def mix(x: Tensor) -> Tensor:
    """A bijection of the 32-bit integers (in int64) that scatters neighbours: multiply and xor-shift, twice."""
    for _ in range(2):
        x = (x ^ (x >> 16)) * 0x45D9F3B & 0xFFFFFFFF
    return x ^ (x >> 16)
