"""EVA (arXiv 2410.07170): the principal directions of each layer's inputs, and ranks by the variance they explain."""

import warnings
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adarank.adapters.layers import EMBEDDING, layer_of
from adarank.adapters.lowrank import LowRank
from adarank.errors import SettingError
from adarank.inits.default import default
from adarank.inits.init import Init, call, evaluating, taken
from adarank.inits.inputs import Inputs
from adarank.inits.pca import PCA


class Found(NamedTuple):
    """V: principal directions [k, d_in], orthonormal rows; ratio [k]: the share of the variance each explains."""

    V: Tensor
    ratio: Tensor


def eva(steps: int = 32, rho: float = 2.0, tau: float = 0.99) -> Init:
    """A = the layer's first r principal input directions, B = 0: the model's function is kept (Algorithm 1).

    An incremental PCA (see `pca.update`) of each layer's inputs, centred, padding left out, over at most `steps` batches;
    it keeps round(rho·r) directions and ends once every direction that would be used turned by less than arccos(tau)
    since the batch before (a warning where that was not reached). ranks: all directions of all layers, sorted by explained
    variance ratio, as many as the ranks asked for have in sum; a layer gets from 0 to round(rho·r).
    "svd": Q = A, λ = 0, P ~ N(0, 0.02²) as in AdaLoRA's code. The scale stays that of the rank asked for. Raises
    SettingError for an embedding, whose input is no vector, and where the batches hold too few rows.
    """
    if not rho >= 1:
        raise SettingError(f"init.rho={rho} leaves no room for the rank asked for; valid: at least 1")
    if not 0 <= tau <= 1:
        raise SettingError(f"init.tau={tau} is no cosine; valid: from 0 to 1")

    @torch.no_grad()
    def measure(model: nn.Module, asked: Mapping[str, int], batches: Iterable[Any]) -> dict[str, Found]:
        limits = {name: _limit(model, name, round(rho * rank)) for name, rank in asked.items()}
        inputs = Inputs(max(limits.values()))
        handles = [
            model.get_submodule(name).register_forward_pre_hook(partial(inputs.hear, name), with_kwargs=True)
            for name in asked
        ]
        turning = list(asked)
        try:
            for batch in taken("eva", batches, steps):
                before = dict(inputs.seen)
                inputs.begin(batch)
                with evaluating(model):
                    call(model, batch)
                found = {name: _of(inputs, name, limit) for name, limit in limits.items()}
                if sum(len(f.V) for f in found.values()) < sum(asked.values()):
                    continue
                needed = _ranks(found, asked)
                turning = [n for n, o in inputs.owner.items() if _turns(before.get(o), inputs.seen[o], needed[n], tau)]
                if not turning:
                    break
        finally:
            for handle in handles:
                handle.remove()
        held = sum(len(f.V) for f in found.values())
        if held < sum(asked.values()):
            raise SettingError(
                f"init=eva found {held} input directions for {sum(asked.values())} triplets; valid: batches with more "
                "rows, or a smaller rank"
            )
        if turning:
            warnings.warn(
                f"init=eva: the inputs of {len(turning)} of {len(asked)} layers had not converged to tau={tau} by the "
                f"end of the batches; more init.steps than {steps} may help",
                stacklevel=3,
            )
        return found

    @torch.no_grad()
    def fill(adapters: Mapping[str, LowRank], found: Mapping[str, Found]) -> None:
        default().fill(adapters, None)
        for name, adapter in adapters.items():
            adapter.Q.copy_(found[name].V[: adapter.rank])

    return Init("eva", fill, measure, _ranks)


def _ranks(found: Mapping[str, Found], asked: Mapping[str, int]) -> dict[str, int]:
    """The most explaining directions of all layers together; of equals, the earlier layer's."""
    module = torch.cat([torch.full((len(found[n].ratio),), i) for i, n in enumerate(asked)])
    ratio = torch.cat([found[n].ratio.cpu() for n in asked])
    best = ratio.sort(descending=True, stable=True).indices[: sum(asked.values())]
    counts = module[best].bincount(minlength=len(asked))
    return dict(zip(asked, counts.tolist(), strict=True))


def _limit(model: nn.Module, name: str, wanted: int) -> int:
    base = model.get_submodule(name)
    layer = layer_of(base)
    assert layer is not None
    if layer is EMBEDDING:
        raise SettingError(f"init=eva needs inputs that are vectors: {name} is an embedding; leave it out of targets")
    return min(wanted, *layer.size(base))


def _of(inputs: Inputs, name: str, limit: int) -> Found:
    """What was found of a layer: nothing yet where no input came."""
    if name not in inputs.owner:
        raise SettingError(f"init=eva: the batches bring {name} no input; leave it out of targets")
    pca = inputs.seen[inputs.owner[name]]
    return Found(pca.V[:limit], pca.ratio[:limit])


def _turns(before: PCA | None, now: PCA, rank: int, tau: float) -> bool:
    """Whether one of the first `rank` directions is not yet where it stays."""
    if not rank:
        return False
    if before is None or len(before.V) < rank:
        return True
    return bool(((before.V[:rank] * now.V[:rank]).sum(1).abs() < tau).any())
