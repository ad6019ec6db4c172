"""EVA (arXiv 2410.07170): the principal directions of each layer's inputs, and ranks by explained variance."""

import warnings
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adarank.adapters.layers import known_layer
from adarank.adapters.lowrank import LowRank
from adarank.errors import SettingError, number
from adarank.inits.default import default
from adarank.inits.init import Init, call, evaluating, taken
from adarank.inits.inputs import PCA, Inputs, update


class Found(NamedTuple):
    """V: principal directions [k, d_in], orthonormal rows; ratio [k]: the share of the variance that each explains."""

    V: Tensor
    ratio: Tensor


def eva(steps: int = 32, rho: float = 2.0, tau: float = 0.99) -> Init:
    """A = the layer's first r principal input directions, B = 0: the model is unchanged (Algorithm 1).

    Runs an incremental PCA (see `inputs.update`) of each layer's centred inputs, without padding, over at most `steps`
    batches. It keeps round(rho·r) directions and stops once no direction that would be used has turned by more than
    arccos(tau) in the last batch; it warns if the batches run out first. ranks: the directions of all layers are sorted
    by explained variance ratio, and the first ones are kept up to the total of the requested ranks; a layer gets 0 to
    round(rho·r). "svd": Q = A, λ = 0, P ~ N(0, 0.02²) as in AdaLoRA's code. The scale remains that of the requested
    rank. Raises SettingError for an embedding, whose inputs are not vectors, and if the batches have too few rows.
    """
    rho = number("init.rho", rho, "at least 1", lambda r: r >= 1)
    tau = number("init.tau", tau, "a cosine from 0 to 1", lambda t: 0 <= t <= 1)

    @torch.no_grad()
    def measure(model: nn.Module, asked: Mapping[str, int], batches: Iterable[Any]) -> dict[str, Found]:
        bases = {name: model.get_submodule(name) for name in asked}
        limits = {name: min(round(rho * asked[name]), *known_layer(base).size(base)) for name, base in bases.items()}
        inputs: Inputs[PCA] = Inputs("eva", partial(update, k=max(limits.values())), responses=True)
        turning = list(asked)
        with inputs.recording(bases):
            for batch in taken("eva", batches, steps):
                before = dict(inputs.seen)
                inputs.begin(batch)
                with evaluating(model):
                    call(model, batch)
                seen = {name: (inputs.of(name), limit) for name, limit in limits.items()}
                found = {name: Found(pca.V[:limit], pca.ratio[:limit]) for name, (pca, limit) in seen.items()}
                if sum(len(f.V) for f in found.values()) < sum(asked.values()):
                    continue
                needed = _ranks(found, asked)
                turning = [n for n in asked if _turns(before.get(n), inputs.seen[n], needed[n], tau)]
                if not turning:
                    break
        held = sum(len(f.V) for f in found.values())
        if held < sum(asked.values()):
            raise SettingError(
                f"init=eva found {held} input directions for {sum(asked.values())} triplets; give batches with more "
                "rows, or a smaller rank"
            )
        if turning:
            warnings.warn(
                f"init=eva: the inputs of {len(turning)} of {len(asked)} layers had not converged to tau={tau} by the "
                f"end of the batches; init.steps above {steps} may help",
                stacklevel=4,
            )
        return found

    def fill(adapter: LowRank, found: Found) -> None:
        default().fill(adapter, None)
        adapter.Q.copy_(found.V[: adapter.rank])

    return Init("eva", fill, measure, _ranks)


def _ranks(found: Mapping[str, Found], asked: Mapping[str, int]) -> dict[str, int]:
    """The ranks that keep the directions which explain most over all layers; ties go to the earlier layer."""
    module = torch.cat([torch.full((len(found[n].ratio),), i) for i, n in enumerate(asked)])
    ratio = torch.cat([found[n].ratio.cpu() for n in asked])
    best = ratio.sort(descending=True, stable=True).indices[: sum(asked.values())]
    counts = module[best].bincount(minlength=len(asked))
    return dict(zip(asked, counts.tolist(), strict=True))


def _turns(before: PCA | None, now: PCA, rank: int, tau: float) -> bool:
    """Whether any of the first `rank` directions has not converged yet."""
    if not rank:
        return False
    if before is None or len(before.V) < rank:
        return True
    return bool(((before.V[:rank] * now.V[:rank]).sum(1).abs() < tau).any())
