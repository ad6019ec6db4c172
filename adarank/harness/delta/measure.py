"""ΔW of a finished run, module by module, and of several runs against each other: what experiments/probe.py writes."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from adarank.adapters.inject import find_targets
from adarank.adapters.layers import layer_of
from adarank.adapters.lowrank import LowRank
from adarank.errors import SettingError
from adarank.harness.delta.amplification import amplification
from adarank.harness.delta.change import Change, of_adapter, of_weights
from adarank.harness.delta.intruders import EPSILON, TOP, intruders
from adarank.harness.delta.orthogonality import drift
from adarank.harness.delta.similarity import similarity
from adarank.harness.delta.spectrum import effective_rank, stable_rank
from adarank.harness.finished import Finished, finish, open_run

SINGULAR_VALUES = 32  # the largest, of each module
DIRECTIONS = 16  # of φ's grid


def measure(folder: Path) -> dict[str, Any]:
    """What one run did to its weights: {"directions", "top", "epsilon", "modules": {name: figures}}.

    directions: k of the amplification factor, the run's `rank` setting, which full fine-tuning has too. Raises
    SettingError for a run that changed no matrix.
    """
    run = open_run(folder)
    before = _matrices(run)
    made = finish(run)
    directions = int(run.settings["rank"])
    modules = {}
    for name in tqdm(before, unit="module", disable=not sys.stderr.isatty(), leave=False):
        change = _change(run, made, name, before[name])
        modules[name] = {**figures(before[name], change, directions), "orthogonality": _drift(made.get(name))}
    return {"directions": directions, "top": TOP, "epsilon": EPSILON, "modules": modules}


def figures(weight: Tensor, change: Change, directions: int) -> dict[str, Any]:
    """The figures of one module. weight: W [d_out, d_in], float64, before training."""
    found = amplification(weight, change, directions)
    return {
        "sides": list(weight.shape),
        "rank": len(change.sigma),
        "norm": float(change.sigma.norm()),
        "base_norm": float(weight.norm()),
        "singular_values": change.sigma[:SINGULAR_VALUES].tolist(),
        "effective_rank": effective_rank(change.sigma),
        "stable_rank": stable_rank(change.sigma),
        "amplification": None if found is None else found._asdict(),
        "intruders": intruders(weight, weight + (change.U * change.sigma) @ change.V.t()),
    }


def compare(folder: Path, others: Sequence[Path]) -> dict[str, Any]:
    """φ between the run's ΔW and that of each of `others`, for every module that both changed: {"with": {run's name:
    {module: {"sides", "output": φ of the left singular vectors, "input": of the right ones}}}}.

    Raises SettingError where two runs share no module of one size.
    """
    own = _changes(folder)
    found = {}
    for other in others:
        theirs = _changes(other)
        shared = [n for n in own if n in theirs and _sides(own[n]) == _sides(theirs[n])]
        if not shared:
            raise SettingError(f"{folder} and {other} changed no module of one size; valid: runs on one model")
        found[other.resolve().name] = {
            name: {
                "sides": _sides(own[name]),
                "output": _grid(own[name].U, theirs[name].U),
                "input": _grid(own[name].V, theirs[name].V),
            }
            for name in shared
        }
    return {"with": found}


def _grid(first: Tensor, second: Tensor) -> list[list[float]]:
    rows: list[list[float]] = similarity(first[:, :DIRECTIONS], second[:, :DIRECTIONS]).tolist()
    return [[round(value, 5) for value in row] for row in rows]


def _sides(change: Change) -> list[int]:
    return [len(change.U), len(change.V)]


def _changes(folder: Path) -> dict[str, Change]:
    run = open_run(folder)
    before = _matrices(run)
    made = finish(run)
    return {name: _change(run, made, name, weight) for name, weight in before.items()}


def _change(run: Finished, made: Mapping[str, nn.Module], name: str, before: Tensor) -> Change:
    module = made.get(name)
    return of_adapter(module) if isinstance(module, LowRank) else of_weights(before, _matrix(run.model, name))


def _matrices(run: Finished) -> dict[str, Tensor]:
    """W of every module that the run changed, as training found it: of those with an adapter, or of all linears in the
    blocks where the whole model trained."""
    path = run.folder / "adapter" / "adapter.json"
    if path.is_file():
        modules = json.loads(path.read_text(encoding="utf-8"))["modules"]
        names = [name for name, info in modules.items() if info.get("rank")]
    else:
        names = find_targets(run.model, "all-linear")
    if not names:
        raise SettingError(f"{run.folder} changed no matrix; valid: a run of a low-rank method, or of method=full")
    return {name: _matrix(run.model, name).clone() for name in names}


@torch.no_grad()
def _matrix(model: nn.Module, name: str) -> Tensor:
    """W [d_out, d_in] of a plain layer, float64."""
    module = model.get_submodule(name)
    layer = layer_of(module)
    assert layer is not None, f"{name} is no layer with a matrix"
    return layer.matrix(module).double()


def _drift(module: nn.Module | None) -> dict[str, float] | None:
    """Of the triplets that are left; None where there are no factors."""
    return {"P": drift(module.P.detach()), "Q": drift(module.Q.detach())} if isinstance(module, LowRank) else None
