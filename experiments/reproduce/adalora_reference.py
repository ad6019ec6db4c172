"""AdaLoRA as in its authors' code, written for clarity: NumPy and loops, without autograd or anything from adarank.

It trains the small network of the golden cases (see `experiments/reproduce/golden.py`) and records every step, as an
independent reference for `RankController(variant="original")`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def draw_case(spec: Mapping[str, Any], case: Mapping[str, Any], seed: int) -> dict[str, Array]:
    """Initial tensors "init/…" and data "X" [T, batch, d], "Y" [T, batch] of one case, drawn from `seed`."""
    draw, dtype = np.random.default_rng(seed), np.dtype(case["dtype"])
    tensors: dict[str, Array] = {}
    for i, (d_in, d_out) in enumerate(spec["dims"]):
        tensors[f"init/l{i}.weight"] = draw.normal(0, 1 / np.sqrt(d_in), (d_out, d_in))
        tensors[f"init/l{i}.bias"] = draw.normal(0, 0.1, d_out)
        tensors[f"init/l{i}.lora_A"] = draw.normal(0, 0.02, (case["r"], d_in))
        tensors[f"init/l{i}.lora_E"] = np.zeros((case["r"], 1))
        tensors[f"init/l{i}.lora_B"] = draw.normal(0, 0.02, (d_out, case["r"]))
    width = spec["dims"][-1][1]
    tensors["init/head.weight"] = draw.normal(0, 1 / np.sqrt(width), (spec["ncls"], width))
    tensors["init/head.bias"] = np.zeros(spec["ncls"])
    tensors["X"] = draw.normal(0, 1, (case["T"], spec["batch"], spec["dims"][0][0]))
    tensors = {name: value.astype(dtype) for name, value in tensors.items()}
    tensors["Y"] = draw.integers(0, spec["ncls"], (case["T"], spec["batch"]))
    return tensors


def record(spec: Mapping[str, Any], case: Mapping[str, Any], start: Mapping[str, Array]) -> dict[str, Array]:
    """Run a case from `draw_case`'s tensors; returns "step/…" arrays [T, …] and "param_after/…" [T, …]."""
    layers = range(len(spec["dims"]))
    value = {name.removeprefix("init/"): t.copy() for name, t in start.items() if name.startswith("init/")}
    factors = [f"l{i}.lora_{part}" for i in layers for part in "AEB"]
    trained = [*factors, "head.weight", "head.bias"]
    average = {name: np.zeros_like(value[name]) for name in factors}
    spread = {name: np.zeros_like(value[name]) for name in factors}
    state = {name: (np.zeros_like(value[name]), np.zeros_like(value[name])) for name in trained}
    steps: dict[str, list[Any]] = {}
    for t in range(case["T"]):
        loss, gradient = _loss_and_gradient(spec, case, value, start["X"][t], start["Y"][t])
        orthogonality = _add_orthogonality(case, value, gradient, layers)
        if case["clip"] > 0:
            norm = np.sqrt(sum((gradient[name] ** 2).sum() for name in trained))
            for name in trained:
                gradient[name] = gradient[name] * min(1.0, case["clip"] / (norm + 1e-6))
        for name in trained:
            _optimise(case, t, value, gradient[name], state[name], name)
        if t < case["T"] - case["tf"]:
            for name in factors:
                now = np.abs(value[name] * gradient[name])
                average[name] = case["b1"] * average[name] + (1 - case["b1"]) * now
                spread[name] = case["b2"] * spread[name] + (1 - case["b2"]) * np.abs(now - average[name])
        budget, masks = _budget(case, t, len(spec["dims"]))
        scores = _scores(case, average, spread, layers)
        keep, threshold = np.ones(len(scores), bool), np.nan
        if masks:
            threshold = np.sort(scores)[len(scores) - budget - 1]
            keep = scores > threshold
            for j, kept in enumerate(keep):
                if not kept:
                    value[f"l{j // case['r']}.lora_E"][j % case["r"]] = 0
        seen = {
            "loss_task": loss,
            "loss_orth": orthogonality,
            "curr_rank": budget,
            "is_mask_step": masks,
            "scores": scores,
            "threshold": threshold,
            "keep": keep,
            "lam_after": np.concatenate([value[f"l{i}.lora_E"][:, 0] for i in layers]),
        }
        for name, item in seen.items():
            steps.setdefault(f"step/{name}", []).append(item)
        for name in trained:
            steps.setdefault(f"param_after/{name}", []).append(value[name].copy())
    return {name: np.array(items) for name, items in steps.items()}


def _loss_and_gradient(
    spec: Mapping[str, Any], case: Mapping[str, Any], value: Mapping[str, Array], x: Array, y: Array
) -> tuple[float, dict[str, Array]]:
    """Cross-entropy of h = tanh(l0 x); h += tanh(l1 h); h = tanh(l2 h); head, and its gradient by layer."""
    scale = spec["lora_alpha"] / (case["r"] + 1e-5)
    inputs, activations, h = [], [], x
    last = len(spec["dims"]) - 1
    for i in range(last + 1):
        A, E, B = (value[f"l{i}.lora_{part}"] for part in "AEB")
        z = h @ value[f"l{i}.weight"].T + value[f"l{i}.bias"] + scale * (h @ (A * E).T) @ B.T
        inputs.append(h)
        activations.append(np.tanh(z))
        h = h + activations[-1] if 0 < i < last else activations[-1]
    logits = h @ value["head.weight"].T + value["head.bias"]
    exponential = np.exp(logits - logits.max(1, keepdims=True))
    probability = exponential / exponential.sum(1, keepdims=True)
    rows = np.arange(len(y))
    loss = -np.log(probability[rows, y]).mean()

    d = probability.copy()
    d[rows, y] -= 1
    d /= len(y)
    gradient = {"head.weight": d.T @ h, "head.bias": d.sum(0)}
    d = d @ value["head.weight"]
    for i in reversed(range(last + 1)):
        A, E, B = (value[f"l{i}.lora_{part}"] for part in "AEB")
        dz = d * (1 - activations[i] ** 2)
        x_i, back = inputs[i], scale * dz @ B
        gradient[f"l{i}.lora_B"] = scale * dz.T @ ((x_i @ A.T) * E.T)
        gradient[f"l{i}.lora_E"] = ((x_i @ A.T) * back).sum(0)[:, None]
        gradient[f"l{i}.lora_A"] = (back * E.T).T @ x_i
        through = dz @ value[f"l{i}.weight"] + (back * E.T) @ A
        d = d + through if 0 < i < last else through
    return float(loss), gradient


def _add_orthogonality(
    case: Mapping[str, Any], value: Mapping[str, Array], gradient: dict[str, Array], layers: range
) -> float:
    """γ/(2n) Σ ‖AAᵀ − I‖_F over A and Bᵀ of every layer; adds its gradient."""
    weight, total = case["gamma"] / (2 * len(layers)), 0.0
    for i in layers:
        for name, transpose in ((f"l{i}.lora_A", False), (f"l{i}.lora_B", True)):
            rows = value[name].T if transpose else value[name]
            gap = rows @ rows.T - np.eye(len(rows), dtype=rows.dtype)
            norm = np.sqrt((gap**2).sum())
            total += weight * norm
            part = weight * 2 * gap @ rows / norm
            gradient[name] = gradient[name] + (part.T if transpose else part)
    return float(total)


def _optimise(
    case: Mapping[str, Any], t: int, value: dict[str, Array], gradient: Array, state: tuple[Array, Array], name: str
) -> None:
    """One step of SGD, or of AdamW with betas (0.9, 0.999) and eps 1e-8."""
    if case["opt"] == "sgd":
        decayed = gradient + case["wd"] * value[name]
        value[name] = (value[name] - case["lr"] * decayed).astype(value[name].dtype)
        return
    first, second = state
    first += 0.1 * (gradient - first)
    second += 0.001 * (gradient**2 - second)
    step = first / (1 - 0.9 ** (t + 1)) / (np.sqrt(second / (1 - 0.999 ** (t + 1))) + 1e-8)
    value[name] = (value[name] * (1 - case["lr"] * case["wd"]) - case["lr"] * step).astype(value[name].dtype)


def _budget(case: Mapping[str, Any], t: int, modules: int) -> tuple[int, bool]:
    """Triplets allowed after step t, and whether a mask is applied."""
    initial, final = case["r"] * modules, case["target"] * modules
    if t <= case["ti"]:
        return initial, False
    if t > case["T"] - case["tf"]:
        return final, True
    left = 1 - (t - case["ti"]) / (case["T"] - case["tf"] - case["ti"])
    return int(final + (initial - final) * left**3), t % case["dt"] == 0


def _scores(case: Mapping[str, Any], average: Mapping[str, Array], spread: Mapping[str, Array], layers: range) -> Array:
    """S_i = ĪŪ(λ_i) + mean_j ĪŪ(Q_ij) + mean_j ĪŪ(P_ji), layer by layer."""
    scores = []
    for i in layers:
        for j in range(case["r"]):
            parts = [(average[f"l{i}.lora_{p}"] * spread[f"l{i}.lora_{p}"]) for p in "AEB"]
            scores.append(parts[1][j, 0] + parts[0][j].mean() + parts[2][:, j].mean())
    return np.array(scores)
