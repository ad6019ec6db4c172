"""Adapts a model and reports on its adapters: adapt, ranks, reach, trainable_parameters."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from adarank import inits
from adarank.adapters.base import base_name, train_whole, unwrapped
from adarank.adapters.experts import keep_names, layer_at, put_layer
from adarank.adapters.layers import (
    EXPERT,
    LINEAR_4BIT,
    check_mergeable,
    check_unadapted,
    keep_gradients,
    layer_of,
    numel,
    stack_names,
    storage_of,
    wrappers_of,
)
from adarank.adapters.lowrank import LowRank, adapters_of, wrap
from adarank.adapters.parametrisation import find
from adarank.errors import SettingError, number, whole_number
from adarank.pieces import needs
from adarank.targets import Targets, find_targets, in_blocks, near, sides, trained_modules


@needs("model", "rank", "targets", "init", "batches", "train")
def adapt(
    model: nn.Module,
    adapter: Any = "svd",
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

    Args:
        model: any nn.Module that is not itself a target.
        adapter: "svd" (P, λ and Q are trained; AdaLoRA, arXiv 2303.10512), "lora" (λ is the constant 1 and B = Pᵀ
            starts at 0; arXiv 2106.09685), "svd_dora" and "dora" (the same with DoRA's magnitude for every output;
            arXiv 2402.09353), the name of another file in adarank/adapters, or a `Parametrisation`.
        rank: triplets per module at creation, one number or {module name: number}.
        targets: a list of module-name endings, a single ending or regular expression, or "all-linear" (`find_targets`).
            "experts", alone or in a list, selects every matrix of every expert that Transformers stacks in one tensor,
            each with a separate adapter (`…mlp.experts.gate_up_proj.3`); otherwise only a matrix's full name selects
            it. Layers inside the modules in `train` are skipped, and a target that matches only such layers is refused.
        alpha: the scale is s = alpha / rank, fixed at creation; None: 2·rank, so that s = 2 ("vera": rank,
            s = 1; "matryoshka": √rank, s = 1/√rank).
        dropout: probability of dropping an input of the low-rank path in training.
        init: the name of an init in `adarank.inits`, or a configured one. eva, gora, fisher and ralora measure where
            rank is needed and may move it between modules; the scale remains that of the requested rank (except with
            gora's own_scale).
        batches: data for inits that measure. Each batch is passed as model(**batch) or, if it is not a mapping, as
            model(*batch); the output needs a .loss if an init needs gradients.
        train: endings of the names of modules that stay trainable as a whole, such as the head.
        rslora: s = alpha / √rank instead (arXiv 2312.03732); needs alpha.

    Returns:
        {module name: adapter}, in the model's order. An adapter has the factors `Q` [r, d_in], `lam` [r] and `P`
        [r, d_out] (fp32, or wider if the base is), the boolean `mask` [r] (False: pruned) and the `scale` s.

    Raises:
        SettingError: an argument cannot be used. The message is one sentence, and the model is unchanged.

    Warns about frozen matrices in the blocks that no adapter wraps (see `reach`), and about modules in `train` that are
    stored in half precision, whose rounding loses most updates.

    Example:
        >>> from torch import nn
        >>> model = nn.ModuleDict({"query": nn.Linear(8, 8), "value": nn.Linear(8, 8), "head": nn.Linear(8, 2)})
        >>> adapters = adapt(model, "svd", rank=4, targets=["query", "value"], train=["head"])
        >>> list(adapters)
        ['query', 'value']
        >>> tuple(adapters["query"].Q.shape), adapters["query"].scale
        ((4, 8), 2.0)
    """
    model, parametrisation = unwrapped(model, changes=True), find(adapter)
    check_unadapted(model)
    if layer_of(model) is not None or stack_names(model):
        raise SettingError(
            f"the model is itself an {type(model).__name__} and cannot be wrapped in place; put it inside a module"
        )
    if alpha is not None:
        alpha = number("alpha", alpha, "a number above 0, or None for 2·rank", lambda a: a > 0)
    if rslora and alpha is None:
        raise SettingError("rslora=true needs alpha, since s = alpha / √rank; set alpha to a number above 0")
    dropout = number("dropout", dropout, "at least 0 and less than 1", lambda p: 0 <= p < 1)
    if isinstance(init, str):
        if init not in inits.__all__:
            raise SettingError(f"init must be one of {', '.join(inits.__all__)} (got {init!r})")
        init = getattr(inits, init)()
    names = find_targets(model, targets, train)
    asked = checked_ranks(model, names, rank)
    trained = trained_modules(model, train)
    if init.own_scale and alpha is None:
        raise SettingError("init.own_scale=true needs alpha, from which a module's s follows; set alpha above 0")
    if parametrisation.shared is not None and init.name != "default":
        raise SettingError(
            f"init must be default with adapter={parametrisation.name}, whose factors are frozen (got {init.name})"
        )
    bases = {name: layer_at(model, name) for name in names}
    if init.changes_base:
        check_mergeable(bases)
        for name, base in bases.items():
            if layer_of(base) is LINEAR_4BIT:
                raise SettingError(
                    f"init={init.name} subtracts its ΔW from the base's weight, which is 4-bit in {name} and would "
                    "have to be quantised again; use a base that is not quantised, or init=default or eva"
                )
    found, moved = measured(init, model, asked, batches)
    per_rank = {n: max(moved[n], 1) if init.own_scale else asked[n] for n in names}
    own = parametrisation.scale
    default = own if callable(own) else lambda rank: own
    scales = {n: default(r) if alpha is None else alpha / (math.sqrt(r) if rslora else r) for n, r in per_rank.items()}

    trained_before = [p for p in model.parameters() if p.requires_grad]
    adapters = wrap(model, {name: (parametrisation, moved[name], scales[name]) for name in names}, dropout)
    try:
        with torch.no_grad():
            if parametrisation.shared is not None:
                parametrisation.shared(adapters)
            for part in parametrisation.extra:
                for a in adapters.values():
                    parametrisation.draw(a, part, getattr(a, part), None)
            for name, a in adapters.items():
                init.fill(a, None if found is None else found[name])
    except SettingError:
        for name, a in adapters.items():  # the original layer (within rounding, where the init had begun to change it)
            start = a.start()
            put_layer(model, name, a.base if start is None else a.layer.merged(a.base, start, 1))
        keep_names(model)
        for parameter in trained_before:
            parameter.requires_grad_(True)
        raise
    train_whole(model, trained)
    missed = reach(model).missed
    wrapped = wrappers_of(model)
    modules = model.named_modules()
    stacks = {base_name(f"{name}.{part}", wrapped) for name, module in modules for part in stack_names(module)}
    if unknown := [name for name in missed if name not in stacks]:
        warnings.warn(
            f"no adapter can wrap {_first(unknown)} (matrices in layers of an unknown type); they stay frozen",
            stacklevel=2,
        )
    if experts := [name for name in missed if name in stacks]:
        warnings.warn(
            f"the targets leave out the experts in {_first(experts)}, which stay frozen (targets='experts' gives each "
            "of them adapters of its own)",
            stacklevel=2,
        )
    return adapters


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def measured(
    init: Any, model: nn.Module, asked: Mapping[str, int], batches: Iterable[Any] | None
) -> tuple[Any, Mapping[str, int]]:
    """(the result of `init`'s measurement on the batches, the ranks that it gives the targets); (None, asked) if it
    measures nothing.

    Raises SettingError if it cannot measure one of the targets, before the model is run.
    """
    if init.measure is not None:
        if expert := next((name for name in asked if layer_of(layer_at(model, name)) is EXPERT), None):
            raise SettingError(
                f"init={init.name} measures layers by their inputs or gradients, but stacked experts ({expert}) have "
                "none of their own; use an init that needs only the weights, such as default, pissa or olora"
            )
        if batches is None:
            raise SettingError(f"init={init.name} uses data, but batches is not given; pass an iterable of batches")
    keep_gradients(model)
    found = None if init.measure is None else init.measure(model, asked, batches)
    return found, asked if init.ranks is None else init.ranks(found, asked)


def checked_ranks(
    model: nn.Module, names: Sequence[str], rank: int | Mapping[str, int], setting: str = "rank"
) -> dict[str, int]:
    """{target: rank}, each a whole number from 1 to the smaller side of its layer. setting: its name in messages."""
    if isinstance(rank, Mapping):
        known = set(names)
        if unknown := [name for name in rank if name not in known]:
            raise SettingError(
                f"rank names {unknown[0]!r}, which is not a target; similar names: {near(unknown[0], names)}"
            )
        if missing := [name for name in names if name not in rank]:
            raise SettingError(f"rank has no entry for the target {missing[0]!r}; give every target its rank")
    ranks = {}
    for name in rank if isinstance(rank, Mapping) else names:
        d_in, d_out = sides(model, name)
        of = f", because {name} is {d_in} → {d_out}"
        ranks[name] = whole_number(setting, rank[name] if isinstance(rank, Mapping) else rank, 1, min(d_in, d_out), of)
    return ranks


class Reach(NamedTuple):
    """share: the fraction of the base's matrix parameters (everything with two or more axes) that adapters wrap;
    missed: names of frozen matrices in the blocks that no adapter wraps, because their layer is none of the
    `layers.LAYER_TYPES` or because they are stacks of experts that the targets exclude."""

    share: float
    missed: list[str]


def reach(model: nn.Module) -> Reach:
    """How much of the base the adapters of a model reach; see `Reach`.

    Example:
        >>> from torch import nn
        >>> model = nn.ModuleDict({"query": nn.Linear(8, 8), "mlp": nn.Linear(8, 24)})
        >>> _ = adapt(model, rank=2, targets=["query"])
        >>> reach(model)
        Reach(share=0.25, missed=[])
    """
    model = unwrapped(model)
    adapters = adapters_of(model)
    wrapped = wrappers_of(model)
    blocks = in_blocks(model)
    stored = (storage_of(adapter.base) for adapter in adapters.values())
    reached = {id(getattr(owner, part)) for owner, part in stored}
    total, missed, seen = 0, [], set()
    for name, module in model.named_modules():
        if isinstance(module, LowRank):
            continue
        layer, stacks = layer_of(module), stack_names(module)
        for part, parameter in module.named_parameters(recurse=False):
            if parameter.ndim < 2 or id(parameter) in seen or (stacks and part not in stacks):  # biases of experts
                continue
            seen.add(id(parameter))
            total += math.prod(layer.size(module)) if layer is not None else parameter.numel()
            if layer is None and id(parameter) not in reached and module in blocks and not parameter.requires_grad:
                missed.append(base_name(f"{name}.{part}", wrapped))
    adapted = sum(a.in_features * a.out_features for a in adapters.values())
    return Reach(adapted / total if total else 0.0, missed)


def ranks(model: nn.Module) -> dict[str, int]:
    """{module name: triplets that are not pruned}. Reads the masks from the device, which synchronises.

    Example:
        >>> from torch import nn
        >>> model = nn.ModuleDict({"query": nn.Linear(8, 8), "value": nn.Linear(8, 8)})
        >>> adapters = adapt(model, rank=3)
        >>> adapters["value"].mask[0] = False
        >>> ranks(model)
        {'query': 3, 'value': 2}
    """
    return {name: int(adapter.mask.sum()) for name, adapter in adapters_of(unwrapped(model)).items()}


def trainable_parameters(model: nn.Module) -> dict[str, int]:
    """Exact parameter counts. Every parameter of the model is in exactly one of adapter, other and frozen.

    adapter: in the low-rank factors and bottlenecks; kept: the same without pruned triplets; other:
    trainable outside the adapters (the head, BitFit's biases, everything in full fine-tuning); trainable = adapter +
    other; frozen; total = trainable + frozen. Parameters shared by several modules count once, and a 4-bit layer counts
    its weights, not the bytes that pack them.

    Example:
        >>> from torch import nn
        >>> model = nn.ModuleDict({"query": nn.Linear(8, 8), "head": nn.Linear(8, 2)})
        >>> _ = adapt(model, "svd", rank=3, targets=["query"], train=["head"])
        >>> trainable_parameters(model)
        {'total': 141, 'trainable': 69, 'adapter': 51, 'kept': 51, 'other': 18, 'frozen': 72}
    """
    model = unwrapped(model)
    adapters = adapters_of(model).values()
    inside = {id(p): p.numel() for a in wrappers_of(model).values() for p in a.parameters(recurse=False)}
    every = {id(p): p for p in model.parameters()}
    adapter = sum(inside.values())
    other = sum(p.numel() for key, p in every.items() if p.requires_grad and key not in inside)
    total = sum(numel(p) for p in every.values())
    return {
        "total": total,
        "trainable": adapter + other,
        "adapter": adapter,
        "kept": adapter - sum((a.rank - int(a.mask.sum())) * a.triplet_cost for a in adapters),
        "other": other,
        "frozen": total - adapter - other,
    }
