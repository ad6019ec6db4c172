"""Weight change: how fine-tuning changed the weights. Compares the singular value decomposition of every module's ΔW
with the W to which it was added (`measure`), and with the ΔW of other runs (`compare`)."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from adarank.adapters.experts import layer_at
from adarank.adapters.layers import layer_of
from adarank.adapters.lowrank import LowRank, original_change, singular_triplets
from adarank.adapters.spectrum import effective_rank, stable_rank
from adarank.errors import SettingError
from adarank.probe.reload import FinishedRun, load_trained_weights, open_run
from adarank.targets import find_targets

SINGULAR_VALUES = 32  # the largest of each module that are kept
DIRECTIONS = 16  # rows and columns of a similarity grid
INTRUDER_TOP = 10  # k and ε: the defaults of the authors' code and of PEFT's
INTRUDER_EPSILON = 0.5


class Change(NamedTuple):
    """ΔW = U diag(σ) Vᵀ, float64. U: [d_out, k], V: [d_in, k], orthonormal columns; sigma: [k], descending."""

    U: Tensor
    sigma: Tensor
    V: Tensor


def measure(folder: Path) -> dict[str, Any]:
    """How a run changed its weights: {"directions", "top", "epsilon", "modules": {name: metrics}}.

    directions: k of the amplification factor, the run's `rank` setting, which full fine-tuning has, too. Raises
    SettingError if the run changed no matrix.
    """
    run = open_run(folder)
    directions, modules = run.spec.rank, {}
    for name, before, adapter, change in _changes(run):
        errors = None
        if adapter is not None:
            errors = {part: orthogonality_error(getattr(adapter, part).detach()) for part in ("P", "Q")}
        modules[name] = {**module_metrics(before, change, directions), "orthogonality": errors}
    return {"directions": directions, "top": INTRUDER_TOP, "epsilon": INTRUDER_EPSILON, "modules": modules}


def compare(folder: Path, others: Sequence[Path]) -> dict[str, Any]:
    """φ between the run's ΔW and that of each of `others`, for every module that both changed.

    Returns {"with": {other run: {module: {"sides", "output": φ of the left singular vectors, "input": of the right
    ones}}}}. Raises SettingError if two runs share no module of the same size.
    """

    def changes(run: Path) -> dict[str, Change]:
        return {name: change for name, _, _, change in _changes(open_run(run))}

    first, grids = changes(folder), {}
    for other in others:
        second = changes(other)
        shared = [n for n in first if n in second and _sides(first[n]) == _sides(second[n])]
        if not shared:
            raise SettingError(f"{folder} and {other} changed no module of the same size; compare runs of one model")
        grids[other.resolve().name] = {
            name: {
                "sides": _sides(first[name]),
                "output": _grid(first[name].U, second[name].U),
                "input": _grid(first[name].V, second[name].V),
            }
            for name in shared
        }
    return {"with": grids}


def module_metrics(weight: Tensor, change: Change, directions: int) -> dict[str, Any]:
    """The metrics of one module, plain values. weight: W [d_out, d_in] before training, float64."""
    return {
        "sides": list(weight.shape),
        "rank": len(change.sigma),
        "norm": float(change.sigma.norm()),
        "base_norm": float(weight.norm()),
        "singular_values": change.sigma[:SINGULAR_VALUES].tolist(),
        "effective_rank": effective_rank(change.sigma),
        "stable_rank": stable_rank(change.sigma),
        "amplification": amplification(weight, change, directions),
        "intruders": intruder_dimensions(weight, weight + (change.U * change.sigma) @ change.V.t()),
    }


@torch.no_grad()
def change_of_adapter(adapter: LowRank) -> Change:
    """The change of the original weight by an adapter, with k = r (2r if an init moved a part ΔW₀ out of the base).

    Computed by QR of both factors and the SVD of a k × k matrix, never from the dense ΔW, except for an adapter that is
    more than its triplets, such as DoRA: k = min(d_out, d_in). Pruned triplets do not count (λ ⊙ mask).
    """
    if not adapter.parametrisation.is_plain:
        start = adapter.start()
        return change_between(torch.zeros(()) if start is None else start, adapter.delta())
    lam, start_Q, start_P = adapter.effective_lam(), adapter.start_Q, adapter.start_P
    Q, gain, P = original_change(adapter.scale, adapter.Q, lam, adapter.P, start_Q, start_P)
    V, sigma, U = singular_triplets(Q.double(), gain.double(), P.double())
    return Change(U.t(), sigma, V.t())


@torch.no_grad()
def change_between(before: Tensor, after: Tensor) -> Change:
    """The change from W to W + ΔW, both [d_out, d_in], by full fine-tuning: k = min(d_out, d_in)."""
    U, sigma, Vt = torch.linalg.svd(after.double() - before.double(), full_matrices=False)
    return Change(U, sigma, Vt.t())


def amplification(weight: Tensor, change: Change, directions: int) -> dict[str, float] | None:
    """How far ΔW amplifies directions that W hardly used (LoRA, arXiv 2106.09685, §7.3); None if nothing changed.

    weight: W [d_out, d_in], float64. Returns directions: k = min(directions, rank), the top singular directions of ΔW;
    factor: ‖ΔW_k‖_F / ‖U_kᵀ W V_k‖_F, whose denominator is the part of W in these directions; random: the same for k
    random directions on either side, where the denominator's square is ‖W‖_F² k² / (d_out d_in) on average. The paper
    takes all r directions; limiting them makes full fine-tuning, whose ΔW has full rank, comparable.
    """
    k = min(directions, len(change.sigma))
    U, sigma, V = change.U[:, :k], change.sigma[:k], change.V[:, :k]
    norm = float(sigma.norm())
    if norm == 0.0:
        return None
    inside = float((U.t() @ weight @ V).norm())
    d_out, d_in = weight.shape
    expected = float(weight.norm()) * k / (d_out * d_in) ** 0.5
    factor, random = (norm / part if part else float("inf") for part in (inside, expected))
    return {"directions": k, "factor": factor, "random": random}


def intruder_dimensions(
    before: Tensor, after: Tensor, top: int = INTRUDER_TOP, epsilon: float = INTRUDER_EPSILON
) -> int:
    """The number of leading directions of the fine-tuned weight that the pretrained one lacks (arXiv 2410.21228).

    before, after: W and W + ΔW, dense [d_out, d_in]. One of the `top` left singular vectors u_j of `after` intrudes if
    max_i |u_jᵀ u_i| < ε over all min(d_out, d_in) left singular vectors of `before` (the paper's algorithm 1, with the
    absolute value and thin decompositions of its code).
    """
    old, new = (torch.linalg.svd(weight, full_matrices=False).U for weight in (before, after))
    cosine = (new[:, :top].t() @ old).abs().amax(1)
    return int((cosine < epsilon).sum())


def orthogonality_error(rows: Tensor) -> float:
    """‖F Fᵀ − I‖_F / √r of a factor F with r rows (our P or Q, [r, d]); AdaLoRA's penalty (arXiv 2303.10512, eq. 4)
    pulls it to 0. 0 if there are no rows."""
    if not len(rows):
        return 0.0
    rows = rows.double()
    eye = torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
    return float((rows @ rows.t() - eye).norm()) / len(rows) ** 0.5


def subspace_similarity(first: Tensor, second: Tensor) -> Tensor:
    """φ(i, j) = ‖(first[:, :i])ᵀ second[:, :j]‖_F² / min(i, j) in 0..1 (LoRA, arXiv 2106.09685, §7.2 and appendix G).

    first [d, m], second [d, n]: orthonormal columns, the most important first. Returns [m, n], φ(i, j) in row i − 1 and
    column j − 1: 1 if the smaller subspace lies in the other; max(i, j) / d on average for two random ones. The paper
    takes the singular vectors of A; ours are those of ΔW, which do not depend on how the product is factored.
    """
    shared = (first.t() @ second).square().cumsum(0).cumsum(1)
    rows, columns = (torch.arange(1, n + 1, device=shared.device) for n in shared.shape)
    return shared / torch.minimum(rows.unsqueeze(1), columns)


def _grid(first: Tensor, second: Tensor) -> list[list[float]]:
    rows: list[list[float]] = subspace_similarity(first[:, :DIRECTIONS], second[:, :DIRECTIONS]).tolist()
    return [[round(value, 5) for value in row] for row in rows]


def _sides(change: Change) -> list[int]:
    return [len(change.U), len(change.V)]


def _changes(run: FinishedRun) -> Iterator[tuple[str, Tensor, LowRank | None, Change]]:
    """(name, W before training, low-rank adapter if any, change) of every module that the run changed."""
    before = _matrices(run)
    adapters = load_trained_weights(run)
    for name, weight in tqdm(before.items(), unit="module", disable=not sys.stderr.isatty(), leave=False):
        adapter = adapters.get(name)
        if isinstance(adapter, LowRank):
            yield name, weight, adapter, change_of_adapter(adapter)
        else:
            yield name, weight, None, change_between(weight, _matrix(run.model, name))


def _matrices(run: FinishedRun) -> dict[str, Tensor]:
    """W before training of every module that the run changed: those with an adapter, or all linears in the blocks if
    the whole model was trained."""
    path = run.folder / "adapter" / "adapter.json"
    if path.is_file():
        modules = json.loads(path.read_text(encoding="utf-8"))["modules"]
        names = [name for name, info in modules.items() if info.get("rank")]
    else:
        names = find_targets(run.model, "all-linear")
    if not names:
        raise SettingError(f"{run.folder} changed no matrix; choose a run of a low-rank method or of method=full")
    return {name: _matrix(run.model, name).clone() for name in names}


@torch.no_grad()
def _matrix(model: nn.Module, name: str) -> Tensor:
    """W [d_out, d_in] of a plain layer, float64."""
    module = layer_at(model, name)
    layer = layer_of(module)
    assert layer is not None, f"{name} is not a layer with a matrix"
    return layer.matrix(module).double()
