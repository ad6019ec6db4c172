"""Find the target modules, wrap them, report what trains."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from adarank import inits
from adarank.adapters.lowrank import KINDS, LowRank, adapters_of
from adarank.errors import SettingError

Targets = str | Sequence[str]


def near(name: str, names: Iterable[str]) -> str:
    """The names most like `name`, for an error message; all names' last parts where none is alike."""
    names = list(dict.fromkeys(names))
    close = difflib.get_close_matches(name, names, n=5, cutoff=0.5)
    ends = list(dict.fromkeys(n.rpartition(".")[2] for n in names))
    close = close or difflib.get_close_matches(name.rpartition(".")[2], ends, n=5, cutoff=0.5) or ends[:12]
    return ", ".join(close) or "none"


def _ends_with(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith("." + suffix)


def _matches(name: str, target: str, regex: bool) -> bool:
    return _ends_with(name, target) or (regex and re.fullmatch(target, name) is not None)


def block_linears(model: nn.Module) -> list[str]:
    """Names of the linears inside the model's repeated blocks: those below an entry of an nn.ModuleList.

    Embeddings, pooler and head lie outside the blocks. A model without a ModuleList has no blocks to tell apart:
    then every linear but the output embedding counts.
    """
    stacks = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    get_output: Any = getattr(model, "get_output_embeddings", None)
    output = get_output() if get_output else None
    linears = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not output]
    return [n for n in linears if any(n.startswith(s + ".") for s in stacks)] if stacks else linears


def find_targets(model: nn.Module, targets: Targets) -> list[str]:
    """Module names that `targets` selects, in the model's order.

    targets: a sequence of suffixes ("query" or "attention.query"), one string (a suffix, or a regular expression
    that must match a whole name), or "all-linear". Raises SettingError where a target matches nothing or something
    that is not an nn.Linear.
    """
    if targets == "all-linear":
        found = block_linears(model)
        if not found:
            raise SettingError("targets='all-linear' found no nn.Linear in the model; name the modules to adapt")
        return found
    regex = isinstance(targets, str)
    wanted = [targets] if isinstance(targets, str) else list(targets)
    if not wanted:
        raise SettingError("targets=[] selects nothing; name at least one module, or 'all-linear'")
    if regex:
        try:
            re.compile(wanted[0])
        except re.error as error:
            raise SettingError(
                f"targets={targets!r} is neither a module's name nor a regular expression: {error}"
            ) from None
    modules = {name: module for name, module in model.named_modules() if name}
    linears = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    for target in wanted:
        if not any(_matches(name, target, regex) for name in linears):
            other = {type(m).__name__ for n, m in modules.items() if _matches(n, target, regex)}
            if other:
                raise SettingError(
                    f"targets={target!r} matches only {', '.join(sorted(other))} modules; valid: nn.Linear ones"
                )
            raise SettingError(f"targets={target!r} matches no module; near names: {near(target, linears)}")
    return [name for name in linears if any(_matches(name, target, regex) for target in wanted)]


def _trained_modules(model: nn.Module, train: Sequence[str]) -> list[str]:
    names = [name for name, _ in model.named_modules() if name]
    found = []
    for wanted in [train] if isinstance(train, str) else train:
        hits = [name for name in names if _ends_with(name, wanted)]
        if not hits:
            raise SettingError(f"train={wanted!r} matches no module; near names: {near(wanted, names)}")
        found += hits
    return found


def _ranks_for(names: Sequence[str], rank: int | Mapping[str, int]) -> dict[str, int]:
    if not isinstance(rank, Mapping):
        return dict.fromkeys(names, rank)
    unknown = [name for name in rank if name not in names]
    if unknown:
        raise SettingError(f"rank names {unknown[0]!r}, which is no target; near names: {near(unknown[0], names)}")
    missing = [name for name in names if name not in rank]
    if missing:
        raise SettingError(f"rank gives none for the target {missing[0]!r}; give every target its rank")
    return dict(rank)


def _check_ranks(model: nn.Module, ranks: Mapping[str, int]) -> None:
    for name, rank in ranks.items():
        module: Any = model.get_submodule(name)
        limit = min(module.in_features, module.out_features)
        if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= limit:
            raise SettingError(
                f"rank={rank} does not fit {name} ({module.in_features} → {module.out_features}); "
                f"valid: a whole number from 1 to {limit}"
            )


def adapt(
    model: nn.Module,
    adapter: str = "svd",
    rank: int | Mapping[str, int] = 8,
    targets: Targets = "all-linear",
    alpha: float | None = None,
    dropout: float = 0.0,
    init: Any = "default",
    batches: Iterable[Any] | None = None,
    train: Sequence[str] = (),
) -> dict[str, LowRank]:
    """Wrap the target linears of `model` in place with low-rank adapters and freeze everything else.

    adapter: "svd" (P, λ, Q all learn; AdaLoRA) or "lora" (λ is the constant 1; B = Pᵀ starts at 0).
    rank: triplets per module at creation, one number or {module name: number}. targets: see `find_targets`.
    alpha: scale s = alpha / rank at creation, default 2·rank, so that s = 2. dropout: on the low-rank path's input.
    init: the name of an init in `adarank.inits`, or a configured one. batches: for inits that look at data.
    train: suffixes of modules that stay trainable (the head, say).

    Returns {module name: adapter}, in the model's order. Nothing is changed where an argument cannot be used:
    raises SettingError, in one sentence.
    """
    if adapter not in KINDS:
        raise SettingError(f"adapter={adapter!r} is not an adapter; valid: {', '.join(KINDS)}")
    if adapters_of(model):
        raise SettingError("the model already has adapters; merge them first, or start from a freshly loaded base")
    if isinstance(model, nn.Linear):
        raise SettingError("the model is itself an nn.Linear and cannot be wrapped in place; put it inside a module")
    if alpha is not None and not alpha > 0:
        raise SettingError(f"alpha={alpha} is no scale; valid: a number above 0, or none for 2·rank")
    if not 0 <= dropout < 1:
        raise SettingError(f"dropout={dropout} is no probability of dropping; valid: 0 <= dropout < 1")
    if isinstance(init, str):
        if init not in inits.__all__:
            raise SettingError(f"init={init!r} is not an init; valid: {', '.join(inits.__all__)}")
        init = getattr(inits, init)()
    names = find_targets(model, targets)
    ranks = _ranks_for(names, rank)
    _check_ranks(model, ranks)
    trained = _trained_modules(model, train)

    adapters = wrap(model, {n: (adapter, r, 2.0 * r if alpha is None else alpha) for n, r in ranks.items()}, dropout)
    init(adapters)
    for name in trained:
        model.get_submodule(name).requires_grad_(True)
    return adapters


def wrap(model: nn.Module, plan: Mapping[str, tuple[str, int, float]], dropout: float) -> dict[str, LowRank]:
    """Freeze `model` and wrap its linears by `plan`: {module name: (kind, rank, alpha)}, without filling the factors."""
    model.requires_grad_(False)
    adapters = {}
    for name, (kind, rank, alpha) in plan.items():
        parent, _, child = name.rpartition(".")
        base = model.get_submodule(name)
        wrapped = LowRank(base, kind, rank, alpha, dropout)  # type: ignore[arg-type]  # find_targets: linears only
        wrapped.train(base.training)
        setattr(model.get_submodule(parent), child, wrapped)
        adapters[name] = wrapped
    return adapters


def ranks(model: nn.Module) -> dict[str, int]:
    """{module name: triplets kept}, by the mask. Reads them from the device, which synchronises."""
    return {name: int(adapter.mask.sum()) for name, adapter in adapters_of(model).items()}


def trainable_parameters(model: nn.Module) -> dict[str, int]:
    """Exact numbers of parameters: every parameter of the model is in exactly one of adapter, other and frozen.

    adapter: in the low-rank factors; kept: of those, in triplets that are not pruned; other: trainable outside the
    adapters (the head, or everything in full fine-tuning); trainable = adapter + other; frozen; total = trainable + frozen.
    Parameters shared by several modules count once.
    """
    adapters = adapters_of(model).values()
    inside = {id(p): p.numel() for a in adapters for p in (a.Q, a.lam, a.P) if isinstance(p, nn.Parameter)}
    every = {id(p): p for p in model.parameters()}
    adapter = sum(inside.values())
    other = sum(p.numel() for key, p in every.items() if p.requires_grad and key not in inside)
    total = sum(p.numel() for p in every.values())
    return {
        "total": total,
        "trainable": adapter + other,
        "adapter": adapter,
        "kept": sum(int(a.mask.sum()) * a.triplet_cost for a in adapters),
        "other": other,
        "frozen": total - adapter - other,
    }
