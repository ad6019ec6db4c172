"""Find the target modules, wrap them, report what trains."""

import difflib
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from adarank import inits
from adarank.adapters import layers
from adarank.adapters.bottleneck import bottlenecks_of
from adarank.adapters.layers import layer_of
from adarank.adapters.lowrank import KINDS, LowRank, adapters_of
from adarank.errors import SettingError
from adarank.inits.init import Init

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


def matches(name: str, target: str, regex: bool) -> bool:
    return _ends_with(name, target) or (regex and re.fullmatch(target, name) is not None)


def _stacks(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]


def block_linears(model: nn.Module) -> list[str]:
    """Names of the linears (nn.Linear, GPT-2's Conv1D, 4-bit ones) inside the model's repeated blocks: those below an entry of an nn.ModuleList.

    Embeddings, pooler and head lie outside the blocks. A model without a ModuleList has no blocks to tell apart:
    then every linear but the output embedding counts.
    """
    stacks = _stacks(model)
    get_output: Any = getattr(model, "get_output_embeddings", None)
    output = get_output() if get_output else None
    kinds = (layers.LINEAR, layers.CONV1D, layers.LINEAR_4BIT)
    attention = {id(c) for m in model.modules() if isinstance(m, nn.MultiheadAttention) for c in m.children()}
    linears = [
        name
        for name, m in model.named_modules()
        if layer_of(m) in kinds and m is not output and id(m) not in attention  # which reads its weight, never calls it
    ]
    return [n for n in linears if any(n.startswith(s + ".") for s in stacks)] if stacks else linears


def find_targets(model: nn.Module, targets: Targets) -> list[str]:
    """Module names that `targets` selects, in the model's order.

    targets: a sequence of suffixes ("query" or "attention.query"), one string (a suffix, or a regular expression
    that must match a whole name), or "all-linear". Raises SettingError where a target matches nothing, something that
    is of none of the kinds in `layers.KINDS`, or a layer that cannot be wrapped as it is.
    """
    if targets == "all-linear":
        found = block_linears(model)
        if not found:
            raise SettingError("targets='all-linear' found no nn.Linear in the model; name the modules to adapt")
        check_layers(model, found)
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
    known = [name for name, module in modules.items() if layer_of(module) is not None]
    for target in wanted:
        if not any(matches(name, target, regex) for name in known):
            other = {type(m).__name__ for n, m in modules.items() if matches(n, target, regex)}
            if other:
                raise SettingError(
                    f"targets={target!r} matches only {', '.join(sorted(other))} modules; "
                    f"valid: {', '.join(kind.name for kind in layers.KINDS)}"
                )
            raise SettingError(f"targets={target!r} matches no module; near names: {near(target, known)}")
    found = [name for name in known if any(matches(name, target, regex) for target in wanted)]
    check_layers(model, found)
    return found


def check_layers(model: nn.Module, names: Sequence[str]) -> None:
    """Raise SettingError for a layer that cannot be wrapped as it is, or whose weight is another module's, too."""
    owners: dict[int, dict[tuple[int, str], str]] = {}  # by the parent itself: one module may have several names
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner = name.rpartition(".")[0]
        owners.setdefault(id(parameter), {}).setdefault(_place(model, owner), owner)
    for name in names:
        module: Any = model.get_submodule(name)
        why = layers.refusal(module, model.get_submodule(name.rpartition(".")[0]))
        here = _place(model, name)
        others = [other for place, other in owners.get(id(module.weight), {}).items() if place != here]
        if others:
            why = f"its weight is tied to {others[0]}'s, and an adapter on one of them would part the two"
        if why:
            raise SettingError(f"targets: {name} cannot be adapted: {why}; leave it out")


def _place(model: nn.Module, name: str) -> tuple[int, str]:
    parent, _, child = name.rpartition(".")
    return id(model.get_submodule(parent)), child


def trained_modules(model: nn.Module, train: Sequence[str]) -> list[str]:
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


def sides(model: nn.Module, name: str) -> tuple[int, int]:
    """(d_in, d_out) of the matrix of a layer that can be wrapped."""
    module = model.get_submodule(name)
    layer = layer_of(module)
    assert layer is not None
    return layer.size(module)


def _check_ranks(model: nn.Module, ranks: Mapping[str, int]) -> None:
    for name, rank in ranks.items():
        d_in, d_out = sides(model, name)
        limit = min(d_in, d_out)
        if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= limit:
            raise SettingError(
                f"rank={rank} does not fit {name} ({d_in} → {d_out}); valid: a whole number from 1 to {limit}"
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
    rslora: bool = False,
) -> dict[str, LowRank]:
    """Wrap the target layers of `model` in place with low-rank adapters and freeze everything else.

    adapter: "svd" (P, λ, Q all learn; AdaLoRA) or "lora" (λ is the constant 1; B = Pᵀ starts at 0).
    rank: triplets per module at creation, one number or {module name: number}. targets: see `find_targets`.
    alpha: scale s = alpha / rank at creation, default 2·rank, so that s = 2. rslora: s = alpha / √rank instead
    (arXiv 2312.03732); alpha must be given then. dropout: on the low-rank path's input.
    init: the name of an init in `adarank.inits`, or a configured one; one that measures may move ranks between
    modules (EVA, GoRA), and the scale stays that of the rank asked for. batches: for inits that look at data; each is
    called as model(**batch) or, if no mapping, model(*batch), and has a .loss where an init needs gradients.
    train: suffixes of modules that stay trainable (the head, say).

    Returns {module name: adapter}, in the model's order. Warns, naming them, of matrices in the blocks that no adapter
    can wrap (see `reach`). Nothing is changed where an argument cannot be used: raises SettingError, in one sentence.
    """
    if adapter not in KINDS:
        raise SettingError(f"adapter={adapter!r} is not an adapter; valid: {', '.join(KINDS)}")
    if adapters_of(model) or bottlenecks_of(model):
        raise SettingError("the model already has adapters; merge them first, or start from a freshly loaded base")
    if layer_of(model) is not None:
        raise SettingError(
            f"the model is itself an {type(model).__name__} and cannot be wrapped in place; put it inside a module"
        )
    if alpha is not None and not alpha > 0:
        raise SettingError(f"alpha={alpha} is no scale; valid: a number above 0, or none for 2·rank")
    if rslora and alpha is None:
        raise SettingError("rslora=true needs alpha, since s = alpha / √rank; give alpha a number above 0")
    if not 0 <= dropout < 1:
        raise SettingError(f"dropout={dropout} is no probability of dropping; valid: 0 <= dropout < 1")
    init = _configured(init)
    names = find_targets(model, targets)
    ranks = _ranks_for(names, rank)
    _check_ranks(model, ranks)
    trained = trained_modules(model, train)
    scales = {n: 2.0 if alpha is None else alpha / (math.sqrt(r) if rslora else r) for n, r in ranks.items()}
    if init.changes_base:
        for name in names:
            if layer_of(model.get_submodule(name)) is layers.LINEAR_4BIT:
                raise SettingError(
                    f"init={init.name} takes its ΔW out of the base's weight, which is 4-bit in {name} and would be "
                    "quantised once more; valid: a base that is not quantised, or init=default, eva"
                )
    layers.keep_gradients(model)
    found = None
    if init.measure is not None:
        if batches is None:
            raise SettingError(f"init={init.name} looks at data: batches is not given; pass an iterable of batches")
        found = init.measure(model, ranks, batches)
    if init.ranks is not None:
        ranks = init.ranks(found, ranks)

    trained_before = [p for p in model.parameters() if p.requires_grad]
    adapters = wrap(model, {name: (adapter, ranks[name], scales[name]) for name in names}, dropout)
    try:
        init.fill(adapters, found)
    except SettingError:
        _unwrap(model, adapters)
        for parameter in trained_before:
            parameter.requires_grad_(True)
        raise
    for name in trained:
        model.get_submodule(name).requires_grad_(True)
    if missed := reach(model).missed:
        warnings.warn(
            f"no adapter can wrap {', '.join(missed[:5])}{', …' if len(missed) > 5 else ''} "
            "(matrices of a kind of layer that is not known); they stay frozen",
            stacklevel=2,
        )
    return adapters


def _configured(init: Any) -> Init:
    if not isinstance(init, str):
        return init  # type: ignore[no-any-return]
    if init not in inits.__all__:
        raise SettingError(f"init={init!r} is not an init; valid: {', '.join(inits.__all__)}")
    return getattr(inits, init)()  # type: ignore[no-any-return]


def wrap(model: nn.Module, plan: Mapping[str, tuple[str, int, float]], dropout: float) -> dict[str, LowRank]:
    """Freeze `model` and wrap its layers by `plan`: {module name: (kind, rank, scale)}, without filling the factors."""
    layers.keep_gradients(model)
    model.requires_grad_(False)
    adapters = {}
    for name, (kind, rank, scale) in plan.items():
        parent, _, child = name.rpartition(".")
        base = model.get_submodule(name)
        wrapped = LowRank(base, kind, rank, scale, dropout)
        wrapped.train(base.training)
        setattr(model.get_submodule(parent), child, wrapped)
        adapters[name] = wrapped
    return adapters


def _unwrap(model: nn.Module, adapters: Mapping[str, LowRank]) -> None:
    """Put the layers back as they were (within rounding, where an init had begun to change the base)."""
    for name, adapter in adapters.items():
        parent, _, child = name.rpartition(".")
        start = adapter.start()
        base = adapter.base if start is None else adapter.layer.merged(adapter.base, start, 1)
        setattr(model.get_submodule(parent), child, base)


class Reach(NamedTuple):
    """share: of the base's matrix parameters (everything with two or more axes), the part that adapters wrap; missed:
    names of matrices inside the blocks that belong to no kind of layer in `layers.KINDS` (stacked experts, say)."""

    share: float
    missed: list[str]


def reach(model: nn.Module) -> Reach:
    """What an adapted model's adapters reach of its base."""
    adapters = adapters_of(model)
    inside = sum(a.in_features * a.out_features for a in adapters.values())
    stacks = _stacks(model)
    total, missed, seen = 0, [], set()
    for name, module in model.named_modules():
        if isinstance(module, LowRank):
            continue
        layer = layer_of(module)
        for part, parameter in module.named_parameters(recurse=False):
            if parameter.ndim < 2 or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            total += math.prod(layer.size(module)) if layer is not None else parameter.numel()
            if layer is None and any(name.startswith(stack + ".") for stack in stacks):
                missed.append(f"{name}.{part}")
    return Reach(inside / total if total else 0.0, missed)


def ranks(model: nn.Module) -> dict[str, int]:
    """{module name: triplets kept}, by the mask. Reads them from the device, which synchronises."""
    return {name: int(adapter.mask.sum()) for name, adapter in adapters_of(model).items()}


def trainable_parameters(model: nn.Module) -> dict[str, int]:
    """Exact numbers of parameters: every parameter of the model is in exactly one of adapter, other and frozen.

    adapter: in the low-rank factors and bottlenecks; kept: of those, what is not in a pruned triplet; other: trainable
    outside the adapters (the head, BitFit's biases, everything in full fine-tuning); trainable = adapter + other;
    frozen; total = trainable + frozen.
    Parameters shared by several modules count once; those of a 4-bit layer count as the weights they stand for.
    """
    adapters = adapters_of(model).values()
    inside = {id(p): p.numel() for a in adapters for p in (a.Q, a.lam, a.P) if isinstance(p, nn.Parameter)}
    whole = {id(p): p.numel() for b in bottlenecks_of(model).values() for p in b.own()}
    inside |= whole
    every = {id(p): p for p in model.parameters()}
    adapter = sum(inside.values())
    other = sum(p.numel() for key, p in every.items() if p.requires_grad and key not in inside)
    total = sum(layers.numel(p) for p in every.values())
    return {
        "total": total,
        "trainable": adapter + other,
        "adapter": adapter,
        "kept": sum(int(a.mask.sum()) * a.triplet_cost for a in adapters) + sum(whole.values()),
        "other": other,
        "frozen": total - adapter - other,
    }
