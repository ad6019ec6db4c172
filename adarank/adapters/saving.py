"""An adapter on disk: adapter.safetensors (tensors) and adapter.json (what they are). Never pickle.

Only what the finished model needs is kept: of each module the triplets that are not pruned, and whatever else was
trained (the head).
"""

import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from adarank.adapters import bottleneck
from adarank.adapters.bottleneck import bottlenecks_of, features_of
from adarank.adapters.inject import check_layers, near, wrap
from adarank.adapters.insert import insert
from adarank.adapters.layers import CONV2D, LINEAR_4BIT, layer_of
from adarank.adapters.lowrank import KINDS, LowRank, adapters_of
from adarank.adapters.merge import is_merged
from adarank.errors import SettingError

T = TypeVar("T")
FORMAT = 1
FACTORS = ("Q", "lam", "P")
START = ("start_Q", "start_P")
BOTTLENECK, NONE = "bottleneck", "none"  # kinds beside the low-rank ones; none: the base's own parameters alone


def adapter_state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, description) of a model's adapters and of everything else that trains, on the CPU.

    Tensors: "<module>.Q" [r, d_in], "<module>.lam" [r], "<module>.P" [r, d_out] of the r kept triplets;
    "<module>.start_Q", "<module>.start_P" where an init took ΔW₀ out of the base, which a freshly loaded base lacks;
    "<module>.down" [m, d], "<module>.down_bias" [m], "<module>.up" [d, m] and "<module>.up_bias" [d] of a bottleneck;
    and "<parameter>" for each other trainable parameter, by its name in the base. BitFit and a trained head are those
    alone. Raises SettingError where nothing was adapted: no adapter, and all or none of the model trains.
    """
    adapters, bottlenecks = adapters_of(model), bottlenecks_of(model)
    trains = [p.requires_grad for p in model.parameters()]
    in_part = any(trains) and not all(trains) and not is_merged(model)
    if not adapters and not bottlenecks and not in_part:
        raise SettingError("the model has no adapters to save; if they are merged, call adarank.unmerge first")
    tensors: dict[str, Tensor] = {}
    modules: dict[str, dict[str, Any]] = {}
    inside = set()
    for name, adapter in adapters.items():
        inside |= {id(adapter.Q), id(adapter.lam), id(adapter.P)}
        kept = adapter.mask.nonzero().squeeze(1)
        for part in FACTORS:
            tensors[f"{name}.{part}"] = getattr(adapter, part).detach()[kept].cpu().contiguous()
        for part in START if adapter.start_Q is not None else ():
            tensors[f"{name}.{part}"] = getattr(adapter, part).cpu().contiguous()
        modules[name] = {
            "rank": len(kept),
            "start_rank": None if adapter.start_Q is None else len(adapter.start_Q),
            "scale": adapter.scale,
            "in_features": adapter.in_features,
            "out_features": adapter.out_features,
            **_of_layer(adapter),
        }
    for name, added in bottlenecks.items():
        inside |= {id(p) for p in added.own()}
        tensors |= {f"{name}.{part}": getattr(added, part).detach().cpu().contiguous() for part in bottleneck.PARTS}
        modules[name] = {"width": added.width, "features": added.features, "activation": added.activation}
    wrapped = adapters.keys() | bottlenecks.keys()
    named = [(_name_in_base(n, wrapped), p) for n, p in model.named_parameters()]
    trained = {n: p for n, p in named if p.requires_grad and id(p) not in inside}
    tensors |= {n: p.detach().cpu().contiguous() for n, p in trained.items()}
    first = next(iter(adapters.values()), None)
    without = BOTTLENECK if bottlenecks else NONE
    description = {
        "format": FORMAT,
        "kind": without if first is None else first.kind,
        "dropout": 0.0 if first is None else first.dropout,
        "modules": modules,
        "trained": {n: list(p.shape) for n, p in trained.items()},
        "whole": _whole(model, trained),
        "base": {
            "class": type(model).__name__,
            "name": getattr(getattr(model, "config", None), "name_or_path", None) or None,
        },
    }
    return tensors, description


def _of_layer(adapter: LowRank) -> dict[str, Any]:
    """What other formats must know of the layer to hold its factors."""
    if adapter.layer is not CONV2D:
        return {"layer": adapter.layer.name}
    base = adapter.base
    kernel, dilation = list(base.weight.shape[1:]), list(base.dilation)
    return {"layer": CONV2D.name, "kernel": kernel, "dilation": dilation, "padding_mode": base.padding_mode}


def _whole(model: nn.Module, trained: Collection[str]) -> list[str]:
    """The outermost modules whose whole state dict is among the trained parameters: the head, say."""
    whole: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(outer + ".") for outer in whole)
        if not name or inside or isinstance(module, nn.ModuleList | nn.ModuleDict):
            continue
        state = module.state_dict()
        if state and all(f"{name}.{key}" in trained for key in state):
            whole.append(name)
    return whole


def _name_in_base(name: str, wrapped: Collection[str]) -> str:
    """A parameter's name before its layer was wrapped."""
    module, _, part = name.rpartition(".base.")
    return f"{module}.{part}" if module in wrapped else name


def save_adapter(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Write the adapters and the trained head into `folder` (made if missing), each file whole or not at all."""
    tensors, description = adapter_state(model)
    write_adapter(tensors, description, folder)


def write_adapter(
    tensors: Mapping[str, Tensor], description: Mapping[str, Any], folder: str | os.PathLike[str]
) -> None:
    """Write what `adapter_state` returned."""
    write_files(folder, {"adapter.safetensors": tensors, "adapter.json": description})


def write_files(folder: str | os.PathLike[str], files: Mapping[str, Any]) -> None:
    """Write {file name: tensors (.safetensors) or what JSON holds} into `folder`, each file whole or not at all."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        tensors = name.endswith(".safetensors")
        text = "" if tensors else json.dumps(content, indent=2) + "\n"
        data = save(dict(content), metadata={"format": "pt"}) if tensors else text.encode()
        temporary = path / f".{name}.{os.getpid()}.tmp"
        temporary.write_bytes(data)
        temporary.replace(path / name)


def load_adapter(model: nn.Module, folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Wrap a freshly loaded base with the adapters in `folder` and load the trained head; returns {module name:
    adapter} (none for BitFit and a trained head).

    Everything is checked before anything changes: SettingError where a file is missing or damaged, the model already
    has adapters, or it is not the base they were made for (the differing shapes are named).
    """
    tensors, description = read_adapter(folder)
    return put_adapter(model, tensors, description, Path(folder))


def put_adapter(
    model: nn.Module, tensors: Mapping[str, Tensor], description: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    """`load_adapter` from what `adapter_state` returned; `path` is what the complaints name."""
    if adapters_of(model) or bottlenecks_of(model):
        raise SettingError("the model already has adapters; load into a freshly loaded base")
    into_bottlenecks = description["kind"] == BOTTLENECK
    plan: Any = (_bottleneck_plan if into_bottlenecks else _lowrank_plan)(model, description, tensors, path)
    parameters = dict(model.named_parameters())
    for name in description["trained"]:
        if name not in parameters:
            raise SettingError(
                f"{path} holds a trained {name}, which the model lacks; near names: {near(name, parameters)}"
            )
        _check_shape(path, name, tuple(tensors[name].shape), tuple(parameters[name].shape))

    made: Any = insert(model, plan) if into_bottlenecks else wrap(model, plan, description["dropout"])
    with torch.no_grad():
        for name, adapter in made.items():
            if f"{name}.start_Q" in tensors:
                start = (tensors[f"{name}.{part}"].to(adapter.Q) for part in START)
                adapter.start_from(*start)
            for part in bottleneck.PARTS if into_bottlenecks else FACTORS:
                getattr(adapter, part).copy_(tensors[f"{name}.{part}"])
        for name in description["trained"]:
            parameters[name].copy_(tensors[name]).requires_grad_(True)
    return dict(made)


def _lowrank_plan(
    model: nn.Module, description: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path
) -> dict[str, tuple[str, int, float]]:
    """What `wrap` makes of the description, checked against the model."""
    plan = {}
    for name, info in description["modules"].items():
        found, expected = _sides(model, name, path), (info["in_features"], info["out_features"])
        if found != expected:
            raise SettingError(
                f"{path} was made for another base: {name} is {expected[0]} → {expected[1]} there, "
                f"{found[0]} → {found[1]} here"
            )
        if info.get("start_rank") is not None and layer_of(model.get_submodule(name)) is LINEAR_4BIT:
            raise SettingError(
                f"{path} starts from a changed base, and {name} is a 4-bit layer; load it into a plain one"
            )
        check_factors(path, name, info, tensors)
        plan[name] = (description["kind"], info["rank"], info["scale"])
    check_layers(model, list(plan))
    return plan


def check_factors(path: Path, name: str, info: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raise SettingError where a low-rank module's tensors have other shapes than its part of the description says."""
    start, d_in, d_out = info.get("start_rank"), info["in_features"], info["out_features"]
    sizes = {"Q": (info["rank"], d_in), "lam": (info["rank"],), "P": (info["rank"], d_out)}
    sizes |= {"start_Q": (start, d_in), "start_P": (start, d_out)}
    for part in _parts(info):
        _check_shape(path, f"{name}.{part}", tuple(tensors[f"{name}.{part}"].shape), sizes[part])


def _bottleneck_plan(
    model: nn.Module, description: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path
) -> dict[str, tuple[int, str]]:
    """What `insert` makes of the description, checked against the model."""
    known = {n: d for n, m in model.named_modules() if (d := features_of(m)) is not None}
    plan = {}
    for name, info in description["modules"].items():
        d, m = _known(known, name, path), info["width"]
        if d != info["features"]:
            raise SettingError(f"{path} was made for another base: {name} puts out {info['features']} there, {d} here")
        sizes = {"down": (m, d), "down_bias": (m,), "up": (d, m), "up_bias": (d,)}
        for part in bottleneck.PARTS:
            _check_shape(path, f"{name}.{part}", tuple(tensors[f"{name}.{part}"].shape), sizes[part])
        if info["activation"] not in bottleneck.ACTIVATIONS:
            raise SettingError(f"{path}/adapter.json is damaged: {name} has the activation {info['activation']!r}")
        plan[name] = (m, info["activation"])
    return plan


def read_files(path: Path, wanted: Sequence[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(the JSON object, the tensors) of a folder's two files, named in this order. The header of a .safetensors is
    checked against the file's size before anything is allocated; SettingError where a file is missing or damaged."""
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
        raise SettingError(f"{path}/{wanted[0]} is damaged: it holds no JSON object")
    return description, tensors


def read_adapter(folder: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, description) as `save_adapter` wrote them, checked against each other; no model is needed. SettingError
    where a file is missing or damaged, or the two disagree. A module's name is only ever looked up, never a path."""
    path = Path(folder)
    description, tensors = read_files(path, ("adapter.json", "adapter.safetensors"))
    if description.get("format") != FORMAT:
        raise SettingError(f"{path}/adapter.json is not of format {FORMAT}, the one this version of adarank reads")
    if (
        description.get("kind") not in (*KINDS, BOTTLENECK, NONE)
        or not isinstance(description.get("dropout"), float | int)
        or not all(isinstance(description.get(part), dict) for part in ("modules", "trained"))
    ):
        raise SettingError(f"{path}/adapter.json is damaged: kind, dropout, modules or trained is missing or unknown")
    for name, info in description["modules"].items():
        _check_module(path, name, info, description["kind"] == BOTTLENECK)
    wanted = {f"{n}.{part}" for n, info in description["modules"].items() for part in _parts(info)}
    wanted |= set(description["trained"])
    if wanted != tensors.keys():
        differing = sorted(wanted ^ tensors.keys())[0]
        raise SettingError(f"{path} is damaged: its two files disagree about {differing}")
    return tensors, description


def _check_module(path: Path, name: str, info: Any, into_bottleneck: bool) -> None:
    """Raise SettingError where a module's part of adapter.json lacks something or holds something of another kind."""
    needed: dict[str, Any] = {"rank": int, "scale": (float, int), "in_features": int, "out_features": int}
    if into_bottleneck:
        needed = {"width": int, "features": int, "activation": str}
    found = info if isinstance(info, dict) else {}
    for part, kind in sorted(needed.items(), key=lambda item: item[0]):
        if part not in found:
            raise SettingError(f"{path}/adapter.json is damaged: {name} lacks its {part}")
        if not isinstance(found[part], kind) or isinstance(found[part], bool):
            raise SettingError(f"{path}/adapter.json is damaged: {name} has the {part} {found[part]!r}")


def _parts(info: Mapping[str, Any]) -> tuple[str, ...]:
    """The tensors that a module of the description has."""
    if "width" in info:
        return bottleneck.PARTS
    return FACTORS if info.get("start_rank") is None else FACTORS + START


def _sides(model: nn.Module, name: str, path: Path) -> tuple[int, int]:
    known = {n: layer for n, m in model.named_modules() if (layer := layer_of(m)) is not None}
    return _known(known, name, path).size(model.get_submodule(name))


def _known(known: Mapping[str, T], name: str, path: Path) -> T:
    if name not in known:
        raise SettingError(f"{path} was made for another base: it adapts {name}, near names here: {near(name, known)}")
    return known[name]


def _check_shape(path: Path, name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise SettingError(f"{path} was made for another base: {name} is {found} there, {expected} here")
