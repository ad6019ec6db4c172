"""An adapter on disk: adapter.safetensors (the tensors) and adapter.json (their description), without pickles.

The files hold only the parameters that the finished model needs: the kept triplets and all other trained parameters
(the head).
"""

import json
import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from adarank.adapters import bottleneck
from adarank.adapters.base import (
    base_name,
    changed_buffers,
    class_names,
    differs_from,
    fingerprint,
    name_classes,
    unwrapped,
)
from adarank.adapters.bottleneck import bottlenecks_of, features_of, insert
from adarank.adapters.experts import named_layers
from adarank.adapters.layers import (
    CONV2D,
    EXPERT,
    LINEAR_4BIT,
    check_mergeable,
    check_unadapted,
    layer_of,
    wrappers_of,
)
from adarank.adapters.lowrank import FACTORS, START, adapters_of, wrap
from adarank.adapters.merge import is_merged
from adarank.adapters.parametrisation import find, lookup
from adarank.errors import SettingError
from adarank.targets import check_layers, near
from adarank.tensor_files import write_tensors

T = TypeVar("T")
FORMAT = 1
FILES = ("adapter.safetensors", "adapter.json")
BOTTLENECK, NONE = "bottleneck", "none"  # kinds without a parametrisation; none: only the base's own parameters


def adapter_state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, description) of a model's adapters and of all its other trainable parameters, on the CPU.

    Tensors: "<module>.Q" [r, d_in], "<module>.lam" [r], "<module>.P" [r, d_out] of the r kept triplets, and the further
    parameters of the parametrisation; "<module>.start_Q", "<module>.start_P" if an init subtracted ΔW₀ from the base,
    which a freshly loaded base still contains; "<module>.down" [m, d], "<module>.down_bias" [m], "<module>.up" [d, m]
    and "<module>.up_bias" [d] of a bottleneck; and "<parameter>" or "<buffer>" for each other trainable parameter and
    each buffer that training has changed, by its name in the base. BitFit and a trained head have only the last. Raises
    SettingError if nothing was adapted: there is no adapter, and either all or none of the model's parameters are
    trainable.
    """
    model = unwrapped(model)
    adapters, bottlenecks = adapters_of(model), bottlenecks_of(model)
    trains = [p.requires_grad for p in model.parameters()]
    in_part = any(trains) and not all(trains) and not is_merged(model)
    if not adapters and not bottlenecks and not in_part:
        raise SettingError("the model has no adapters to save; if they are merged, call adarank.unmerge first")
    tensors: dict[str, Tensor] = {}
    modules: dict[str, dict[str, Any]] = {}
    for name, adapter in adapters.items():
        kept = adapter.mask.nonzero().squeeze(1)
        for part in FACTORS:
            tensors[f"{name}.{part}"] = getattr(adapter, part).detach()[kept].cpu().contiguous()
        for part in (*adapter.parametrisation.extra, *(START if adapter.start_Q is not None else ())):
            tensors[f"{name}.{part}"] = getattr(adapter, part).detach().cpu().contiguous()
        modules[name] = {
            "rank": len(kept),
            "start_rank": None if adapter.start_Q is None else len(adapter.start_Q),
            "scale": adapter.scale,
            "in_features": adapter.in_features,
            "out_features": adapter.out_features,
            "layer": adapter.layer.name,
        }
        if adapter.layer is CONV2D:  # other formats need these to store its factors
            base = adapter.base
            modules[name] |= {"kernel": list(base.weight.shape[1:]), "dilation": list(base.dilation)}
            modules[name]["padding_mode"] = base.padding_mode
        if adapter.layer is EXPERT:
            modules[name]["experts"] = adapter.base.owner.num_experts
    for name, added in bottlenecks.items():
        tensors |= {f"{name}.{part}": getattr(added, part).detach().cpu().contiguous() for part in bottleneck.PARTS}
        modules[name] = {"width": added.width, "features": added.features, "activation": added.activation}
    wrapped = wrappers_of(model)
    inside = {id(p) for a in wrapped.values() for p in a.parameters(recurse=False)}
    trained = {
        base_name(name, wrapped): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and id(parameter) not in inside
    }
    names = {id(parameter): name for name, parameter in trained.items()}
    tied = {
        other: names[id(parameter)]
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if id(parameter) in names and (other := base_name(name, wrapped)) not in trained
    }
    buffers = {name: buffer for name, (buffer, _) in changed_buffers(model).items()}
    tensors |= {n: p.detach().cpu().contiguous() for n, p in {**trained, **buffers}.items()}
    first = next(iter(adapters.values()), None)
    without = BOTTLENECK if bottlenecks else NONE
    description = {
        "format": FORMAT,
        "kind": without if first is None else first.kind,
        "dropout": 0.0 if first is None else first.dropout,
        "modules": modules,
        "trained": {n: list(p.shape) for n, p in trained.items()},
        "buffers": {n: list(b.shape) for n, b in buffers.items()},
        "tied": tied,  # further names of these parameters
        "whole": _whole(model, {*trained, *tied}),
        "labels": class_names(model),
        "base": {
            "class": type(model).__name__,
            "name": getattr(getattr(model, "config", None), "name_or_path", None) or None,
            "fingerprint": fingerprint(model),
        },
    }
    return tensors, description


def _whole(model: nn.Module, trained: Collection[str]) -> list[str]:
    """The outermost modules all of whose parameters are trained, such as the head."""
    whole: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(outer + ".") for outer in whole)
        if not name or inside or isinstance(module, nn.ModuleList | nn.ModuleDict):
            continue
        keys = [key for key, _ in module.named_parameters()]
        if keys and all(f"{name}.{key}" in trained for key in keys):
            whole.append(name)
    return whole


def save_adapter(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Write the adapters and all other trainable parameters, such as the head, into `folder`.

    The folder is created if it is missing, and each of its two files is written completely or not at all. Pruned
    triplets are omitted. Raises SettingError if the model has no adapters and no part of it is trained.

    Example:
        >>> import adarank, copy, tempfile
        >>> from torch import nn
        >>> base = nn.ModuleDict({"query": nn.Linear(4, 4), "head": nn.Linear(4, 2)})
        >>> model = copy.deepcopy(base)
        >>> _ = adarank.adapt(model, rank=2, targets=["query"], train=["head"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_adapter(model, folder)
        ...     list(load_adapter(base, folder, strict=True))
        ['query']
    """
    write_files(folder, dict(zip(FILES, adapter_state(model), strict=True)))


def write_files(folder: str | os.PathLike[str], files: Mapping[str, Any]) -> None:
    """Write {file name: tensors (.safetensors) or a JSON value} into `folder`, each file completely or not at all."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        temporary = path / f".{name}.{os.getpid()}.tmp"
        with temporary.open("wb") as file:
            if name.endswith(".safetensors"):
                write_tensors(file, content, {"format": "pt"})
            else:
                file.write((json.dumps(content, indent=2) + "\n").encode())
        temporary.replace(path / name)


def load_adapter(model: nn.Module, folder: str | os.PathLike[str], strict: bool = False) -> dict[str, Any]:
    """Wrap a freshly loaded base with the adapters in `folder` and load the other trained parameters, such as the head.

    strict: whether to refuse a different checkpoint of the same shapes, instead of only warning. The folder holds a
    fingerprint of its base, which depends on neither dtype nor quantisation.

    The class names are put into the config of a Transformers model with the same number of classes.

    Returns {module name: adapter}; it is empty for BitFit and a trained head. Raises SettingError, before anything is
    changed, if a file is missing or damaged, if the model already has adapters, or if it is not the base for which they
    were made (the message names the differing shapes or values). See `save_adapter` for an example.
    """
    tensors, description = read_adapter(folder)
    return put_adapter(model, tensors, description, Path(folder), strict)


def put_adapter(
    model: nn.Module, tensors: Mapping[str, Tensor], description: Mapping[str, Any], path: Path, strict: bool = False
) -> dict[str, Any]:
    """`load_adapter` for the result of `adapter_state`; messages name `path`."""
    model = unwrapped(model, changes=True)
    check_unadapted(model)
    kind = description["kind"]
    into_bottlenecks = kind == BOTTLENECK
    plan: Any = (_bottleneck_plan if into_bottlenecks else _lowrank_plan)(model, description, tensors, path)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    tied = description.get("tied")
    named = {name: name for name in (*description["trained"], *description.get("buffers", ()))}
    values = {**named, **(tied or {})}
    others: dict[str, Tensor] = {**parameters, **dict(model.named_buffers())}
    for name, source in values.items():
        if name not in others:
            raise SettingError(
                f"{path} contains a trained {name}, which the model lacks; similar names: {near(name, others)}"
            )
        _check_shape(path, source, tensors, others[name].shape)
    sources = {name: source for name, source in values.items() if name in parameters}
    _check_ties(path, parameters, sources, tensors, every=tied is not None)
    if differing := differs_from(model, (description.get("base") or {}).get("fingerprint", {})):
        sentence = (
            f"{path} was trained on another checkpoint: the model has the same shapes but different values in "
            f"{differing}"
        )
        if strict:
            raise SettingError(f"{sentence}; load the base that it was trained on")
        warnings.warn(f"{sentence}; its outputs will differ from those in training", stacklevel=3)

    made: Any = insert(model, plan) if into_bottlenecks else wrap(model, plan, description["dropout"])
    with torch.no_grad():
        for name, adapter in made.items():
            if f"{name}.start_Q" in tensors:
                start = (tensors[f"{name}.{part}"].to(adapter.Q) for part in START)
                adapter.start_from(*start)
            if not into_bottlenecks:
                adapter.original_scale = adapter.scale  # the scale with which its factors were trained
            for part in bottleneck.PARTS if into_bottlenecks else (*FACTORS, *find(kind).extra):
                getattr(adapter, part).copy_(tensors[f"{name}.{part}"])
        for name, source in values.items():
            others[name].copy_(tensors[source])
        for name in sources:
            parameters[name].requires_grad_(True)
    labels = description.get("labels") or []
    if len(getattr(getattr(model, "config", None), "id2label", None) or {}) == len(labels):
        name_classes(model, labels)
    return dict(made)


def _check_ties(
    path: Path, parameters: Mapping[str, Tensor], sources: Mapping[str, str], tensors: Mapping[str, Tensor], every: bool
) -> None:
    """Raise SettingError if the model ties a trained parameter to one that has different values in the saved model.

    sources: {name of a trained parameter: its tensor}; every: whether these are all of their names in the saved model.
    """
    first: dict[int, str] = {}
    for name, source in sources.items():
        other = first.setdefault(id(parameters[name]), source)
        if other != source and not torch.equal(tensors[other], tensors[source]):
            raise SettingError(
                f"{path} was made for another base: it has two values for {name}, which is tied to {other} here"
            )
    for name, parameter in parameters.items() if every else ():
        if id(parameter) in first and name not in sources:
            raise SettingError(
                f"{path} was made for another base: it trained {first[id(parameter)]} but not {name}, which are tied "
                "here"
            )


def _lowrank_plan(
    model: nn.Module, description: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path
) -> dict[str, tuple[str, int, float]]:
    """The plan for `wrap` from the description, checked against the model."""
    layers = named_layers(model).items()
    bases = {name: (layer, module) for name, module in layers if (layer := layer_of(module)) is not None}
    for name in description["modules"]:
        _get(bases, name, path)
    check_layers(model, list(description["modules"]))
    plan = {}
    for name, info in description["modules"].items():
        layer, base = bases[name]
        here, there = layer.size(base), (info["in_features"], info["out_features"])
        if here != there:
            raise SettingError(
                f"{path} was made for another base: {name} is {there[0]} → {there[1]} there, {here[0]} → {here[1]} here"
            )
        if info.get("start_rank") is not None and layer is LINEAR_4BIT:
            raise SettingError(
                f"{path} starts from a changed base, and {name} is a 4-bit layer; load it into a base that is not "
                "quantised"
            )
        if info.get("start_rank") is not None:
            check_mergeable({name: base})
        check_factors(path, name, info, tensors, description["kind"])
        plan[name] = (description["kind"], info["rank"], info["scale"])
    return plan


def check_factors(path: Path, name: str, info: Mapping[str, Any], tensors: Mapping[str, Tensor], kind: str) -> None:
    """Raise SettingError if a low-rank module's tensors do not have the shapes given in its part of the description."""
    start, d_in, d_out = info.get("start_rank"), info["in_features"], info["out_features"]
    sizes = {"Q": (info["rank"], d_in), "lam": (info["rank"],), "P": (info["rank"], d_out)}
    sizes |= {"start_Q": (start, d_in), "start_P": (start, d_out)}
    sizes |= {part: shape(d_in, d_out) for part, shape in find(kind).extra.items()}
    for part in parts_of(info, kind):
        _check_shape(path, f"{name}.{part}", tensors, sizes[part])


def _bottleneck_plan(
    model: nn.Module, description: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path
) -> dict[str, tuple[int, str]]:
    """The plan for `insert` from the description, checked against the model."""
    widths = {n: d for n, m in model.named_modules() if (d := features_of(m)) is not None}
    plan = {}
    for name, info in description["modules"].items():
        d, m = _get(widths, name, path), info["width"]
        if d != info["features"]:
            raise SettingError(
                f"{path} was made for another base: the output of {name} has {info['features']} features there, "
                f"{d} here"
            )
        sizes = {"down": (m, d), "down_bias": (m,), "up": (d, m), "up_bias": (d,)}
        for part in bottleneck.PARTS:
            _check_shape(path, f"{name}.{part}", tensors, sizes[part])
        if info["activation"] not in bottleneck.ACTIVATIONS:
            raise SettingError(f"{path}/adapter.json is damaged: {name} has the activation {info['activation']!r}")
        plan[name] = (m, info["activation"])
    return plan


def read_files(path: Path, wanted: Sequence[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(the JSON object, the tensors) of a folder's two files, named in this order. The header of a .safetensors file is
    checked against the file's size before anything is allocated. Raises SettingError if a file is missing or
    damaged."""
    for name in wanted:
        if not (path / name).is_file():
            pickles = [p.name for p in sorted(path.glob("*")) if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
            also = f"; {pickles[0]} may be a pickle, which can run code, and is never loaded" if pickles else ""
            raise SettingError(f"{path} holds no {name}{also}; give a folder with {' and '.join(wanted)}")
    try:
        description = json.loads((path / wanted[0]).read_text(encoding="utf-8"))
        tensors = load_file(path / wanted[1])
    except (ValueError, RecursionError, SafetensorError) as error:
        raise SettingError(f"{path} is damaged: {str(error).splitlines()[0]}") from None
    if not isinstance(description, dict):
        raise SettingError(f"{path}/{wanted[0]} is damaged: it is not a JSON object")
    return description, tensors


def read_adapter(folder: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, description) as written by `save_adapter`, checked against each other; needs no model. Raises
    SettingError if a file is missing or damaged, or the two disagree. A module's name is only looked up, never used as
    a path."""
    path = Path(folder)
    description, tensors = read_files(path, ("adapter.json", "adapter.safetensors"))
    if description.get("format") != FORMAT:
        raise SettingError(f"{path}/adapter.json must have format {FORMAT} (got {description.get('format')!r})")
    kind = description.get("kind")
    if (
        (kind not in (BOTTLENECK, NONE) and lookup(kind) is None)
        or not isinstance(description.get("dropout"), float | int)
        or not all(isinstance(description.get(part), dict) for part in ("modules", "trained"))
    ):
        raise SettingError(f"{path}/adapter.json is damaged: kind, dropout, modules or trained is missing or unknown")
    for name, info in description["modules"].items():
        _check_module(path, name, info, kind == BOTTLENECK)
    wanted = {f"{n}.{part}" for n, info in description["modules"].items() for part in parts_of(info, str(kind))}
    wanted |= set(description["trained"]) | set(description.get("buffers", ()))
    if wanted != tensors.keys():
        differing = sorted(wanted ^ tensors.keys())[0]
        raise SettingError(f"{path} is damaged: its two files disagree about {differing}")
    return tensors, description


def _check_module(path: Path, name: str, info: Any, into_bottleneck: bool) -> None:
    """Raise SettingError if a module's part of adapter.json lacks a field or has a field of the wrong type."""
    needed: dict[str, Any] = {"rank": int, "scale": (float, int), "in_features": int, "out_features": int}
    if into_bottleneck:
        needed = {"width": int, "features": int, "activation": str}
    fields = info if isinstance(info, dict) else {}
    for field, types in sorted(needed.items(), key=lambda item: item[0]):
        if field not in fields:
            raise SettingError(f"{path}/adapter.json is damaged: {name} lacks its {field}")
        if not isinstance(fields[field], types) or isinstance(fields[field], bool):
            raise SettingError(f"{path}/adapter.json is damaged: {name} has the {field} {fields[field]!r}")


def parts_of(info: Mapping[str, Any], kind: str) -> tuple[str, ...]:
    """The names of the tensors that a module of the description has."""
    if kind == BOTTLENECK:
        return bottleneck.PARTS
    return (*FACTORS, *find(kind).extra, *(START if info.get("start_rank") is not None else ()))


def _get(layers: Mapping[str, T], name: str, path: Path) -> T:
    if name not in layers:
        raise SettingError(
            f"{path} was made for another base: it adapts {name}; similar names here: {near(name, layers)}"
        )
    return layers[name]


def _check_shape(path: Path, name: str, tensors: Mapping[str, Tensor], here: tuple[int, ...]) -> None:
    if (there := tensors[name].shape) != here:
        raise SettingError(f"{path} was made for another base: {name} is {tuple(there)} there, {tuple(here)} here")
