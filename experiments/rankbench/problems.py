"""The regressions of RankBench: a teacher that is the base plus planted low-rank changes, and rows of both."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adarank.errors import SettingError
from experiments.rankbench.bases import RANDOM, Base, random_base, text_base
from experiments.rankbench.settings import Setting


@dataclass(frozen=True)
class Problem:
    """base: untrained; planted: {module: singular values of its planted change, in units of its weight's}; splits:
    {train, dev, test: a batch of all rows}, labels are noisy in train; untrained: {dev, test: the base's loss
    without noise}."""

    base: Base
    planted: dict[str, list[float]]
    splits: dict[str, dict[str, Tensor]]
    untrained: dict[str, float]

    @property
    def ranks(self) -> list[int]:
        """The planted rank of every module."""
        return [len(self.planted.get(name, ())) for name in self.base.names]


@lru_cache(maxsize=32)  # of a pretrained base, drawing costs about as much as training; every method needs every seed
@torch.no_grad()
def draw(setting: Setting, seed: int) -> Problem:
    """The problem of a seed, which draws the planted modules and directions, the noise, and a random base's weights.
    It is shared and must not be changed."""
    generator = torch.Generator().manual_seed(seed + 2**30)  # a stream from which training never draws
    rows = setting.scale.rows
    base = random_base(setting.base, rows, generator) if setting.base in RANDOM else text_base(setting.base, rows)
    teacher, planted = copy.deepcopy(base.model), {}
    for name, rank in zip(_places(setting, base.names, generator), setting.ranks, strict=True):
        weight: Any = teacher.get_submodule(name).weight
        if rank > min(weight.shape):
            raise SettingError(f"ranks must be at most {min(weight.shape)}, the smaller side of {name} (got {rank})")
        planted[name] = [setting.strength * setting.decay**i for i in range(rank)]
        U, V = (torch.linalg.qr(torch.randn(side, rank, generator=generator)).Q for side in weight.shape)
        weight.add_(weight.norm() / min(weight.shape) ** 0.5 * (U * torch.tensor(planted[name])) @ V.t())
    labels = {split: outputs(teacher, base.key, x) for split, x in base.inputs.items()}
    untrained = {
        s: F.mse_loss(outputs(base.model, base.key, base.inputs[s]), labels[s]).item() for s in ("dev", "test")
    }
    noise = torch.randn(labels["train"].shape, generator=generator)
    labels["train"] = labels["train"] + setting.noise * untrained["dev"] ** 0.5 * noise
    splits = {split: {base.key: x, "labels": labels[split]} for split, x in base.inputs.items()}
    return Problem(base, planted, splits, untrained)


def _places(setting: Setting, names: list[str], generator: torch.Generator) -> list[str]:
    """The planted modules, in the order of the setting's ranks."""
    half = len(names) // 2
    among = {"any": names, "early": names[:half], "late": names[half:]}[setting.depth]
    if len(setting.ranks) > len(among):
        raise SettingError(
            f"ranks must be those of at most {len(among)} modules of {setting.base} with depth={setting.depth} (got "
            f"{len(setting.ranks)})"
        )
    return [among[i] for i in torch.randperm(len(among), generator=generator)[: len(setting.ranks)].tolist()]


@torch.no_grad()
def outputs(model: nn.Module, key: str, x: Tensor) -> Tensor:
    """The model's outputs for all rows, 256 rows at a time."""
    return torch.cat([model(**{key: rows}).logits for rows in x.split(256)])


def oracle_map(problem: Problem, rank: int) -> dict[str, int]:
    """{module: rank} that spends `rank` triplets per module on the largest planted singular values; among equal ones,
    those that come first in their module. Triplets beyond the planted ones go to the modules with the fewest."""
    triplets = [(-value, i, name) for name, values in problem.planted.items() for i, value in enumerate(values)]
    kept = [name for _, _, name in sorted(triplets)[: rank * len(problem.base.names)]]
    ranks = {name: kept.count(name) for name in problem.base.names}
    for _ in range(rank * len(ranks) - len(kept)):
        ranks[min(ranks, key=ranks.__getitem__)] += 1
    return ranks


def bound(problem: Problem, ranks: Mapping[str, int]) -> float:
    """The smallest loss ÷ untrained loss that a student with these ranks can reach on the linear base: the share of the
    planted squared singular values that its ranks omit (Eckart and Young 1936)."""
    squares = {name: [value**2 for value in values] for name, values in problem.planted.items()}
    left = sum(sum(values[ranks[name] :]) for name, values in squares.items())
    return left / sum(map(sum, squares.values()))
