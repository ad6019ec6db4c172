"""A control: scores that know nothing."""

import torch
from torch import Tensor

from adarank.bank import Bank
from adarank.scores.score import Buffers, Score


def random(seed: int = 0) -> Score:
    """A number in (0, 1] for every triplet, the same from the first step to the last.

    Drawn once, not anew at each allocation: the rank map is random, but training it is as calm as with a score that
    knows something, because what was pruned stays pruned while the budget falls. The numbers are a hash of the seed and
    the triplet's place, the same on every device. A triplet that starts anew gets the number of the place it is in.
    """

    def draw(bank: Bank) -> Tensor:
        place = torch.arange(bank.triplets, device=bank.mask.device)
        seeded = _mix(torch.full_like(place, (seed + 0x9E3779B9) % 2**32))
        return (_mix(seeded ^ place) + 1).to(bank.dtype) / 2**32

    def init(bank: Bank) -> Buffers:
        return {"number": draw(bank)}

    def observe(buffers: Buffers, bank: Bank) -> None:
        number = buffers["number"]
        number.copy_(torch.where(number == 0, draw(bank), number))

    def score(buffers: Buffers, bank: Bank) -> Tensor:
        return buffers["number"].clone()

    return Score(init, observe, score)


def _mix(x: Tensor) -> Tensor:
    """A bijection of the 32-bit integers (held in int64) that scatters neighbours: multiply and xor-shift, twice."""
    for _ in range(2):
        x = (x ^ (x >> 16)) * 0x45D9F3B & 0xFFFFFFFF
    return x ^ (x >> 16)
