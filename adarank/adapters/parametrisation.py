"""The properties that distinguish low-rank adapters: svd, lora, and every other file here with a PARAMETRISATION."""

import pkgutil
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from adarank import adapters
from adarank.errors import SettingError

if TYPE_CHECKING:
    from adarank.adapters.lowrank import LowRank


def _same_scale(k: int, r: int) -> float:
    return 1.0


class Parametrisation(NamedTuple):
    """How an adapter parametrises the change of a weight. To add one, write adarank/adapters/NAME.py with

        PARAMETRISATION = Parametrisation("NAME", …)

    and conf/adapter/NAME.yaml: `adarank.adapt(model, "NAME")` and `adarank.load_adapter` find the file by its name.

    name: the file's name, `adapter.kind`, and the name in saved folders.
    learns_lambda: whether λ is trained; otherwise it is the constant 1.
    split: (V [k, d_in], σ [k], U [k, d_out]) -> (Q, λ, P) of the same shapes with Pᵀ diag(λ) Q = Uᵀ diag(σ) V.
    draw: (adapter, part, tensor, generator) -> None fills one tensor in place with the initial values of init=default.
        part is "Q", "lam", "P" or a name in `extra`; extra parts are drawn first, with every init. generator: None for
        torch's global one.
    module: the class of the adapters, for a parametrisation that computes something other than W + s·Pᵀ diag(λ) Q; it
        overrides `LowRank.output` and `LowRank.delta`, and `LowRank.unmerged` if ΔW depends on the base's weight.
        One that differs only in training overrides `LowRank.training_lam`. None: `LowRank` itself.
    extra: {name: (d_in, d_out) -> shape} for parameters outside the triplets, trained and saved with the factors.
    prefix_scale: (k, r) -> the factor on the scale s when the first r of k triplets are kept (see `adarank.truncate`).
    shared: {module name: adapter} -> None fills the frozen factors that all modules have in common, once they exist;
        only the default init is then allowed.
    fold: (P, {name in `extra`: tensor}) -> the P with which the change is s·Pᵀ diag(λ) Q, if the extra parameters only
        scale it; None: they do more. An adapter with `fold` can be exported.
    scale: s if alpha is not given: a number, or rank -> s.
    """

    name: str
    learns_lambda: bool
    split: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
    draw: Callable[["LowRank", str, Tensor, Any], object]
    module: "type[LowRank] | None" = None
    extra: Mapping[str, Callable[[int, int], tuple[int, ...]]] = {}
    prefix_scale: Callable[[int, int], float] = _same_scale
    shared: "Callable[[Mapping[str, LowRank]], None] | None" = None
    fold: Callable[[Tensor, Mapping[str, Tensor]], Tensor] | None = None
    scale: float | Callable[[int], float] = 2.0

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what a file defines by its name, since its functions may be local to it."""
        return (find, (self.name,)) if lookup(self.name) is self else (Parametrisation, tuple(self))

    @property
    def is_plain(self) -> bool:
        """Whether the change of the weight is s·Pᵀ diag(λ) Q, so that its factors can be compressed and exported."""
        from adarank.adapters.lowrank import LowRank

        return self.module is None or self.module.delta is LowRank.delta

    def low_rank_P(self, tensors: Mapping[str, Tensor], module: str) -> Tensor:
        """P of a saved module, with its extra parameters folded in if possible (see `fold`)."""
        P = tensors[f"{module}.P"]
        return P if self.fold is None else self.fold(P, {name: tensors[f"{module}.{name}"] for name in self.extra})


def lookup(name: Any) -> Parametrisation | None:
    """The parametrisation in adarank/adapters/NAME.py; None if there is no such file or it defines none."""
    path = f"{adapters.__name__}.{name}"
    if not isinstance(name, str) or not name.isidentifier() or find_spec(path) is None:
        return None
    found: Parametrisation | None = getattr(import_module(path), "PARAMETRISATION", None)
    return found


def find(adapter: Any) -> Parametrisation:
    """The parametrisation of that name, or `adapter` itself if it is one. Raises SettingError for any other value."""
    found = adapter if isinstance(adapter, Parametrisation) else lookup(adapter)
    if found is None:
        names = [module.name for module in pkgutil.iter_modules(adapters.__path__) if lookup(module.name)]
        raise SettingError(f"adapter must be one of {', '.join(names)} (got {adapter!r})")
    return found
