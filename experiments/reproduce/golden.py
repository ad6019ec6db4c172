"""Compares `RankController(variant="original")` step by step with golden trajectories, recorded runs of AdaLoRA.

    python experiments/reproduce/golden.py FOLDER [--json FILE]     check all cases in a folder
    python experiments/reproduce/golden.py --make FOLDER            record the cases that ship with the tests

A folder holds spec.json (sizes and the settings of every case) and one NAME.npz per case: init/*, X, Y, step/*,
param_after/*. A case passes if all budgets and mask steps agree and, in float64, all masks are equal and λ, scores,
thresholds and parameters differ by less than 1e-9. In float32 the limit is 2e-4, and masks may differ where
|S − threshold| is below 1e-4 of the threshold. Scores and thresholds are compared relative to the largest score. The
exit status is 1 if a case fails.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import adarank
from adarank.runs.files import write_json, write_text
from experiments.reproduce.adalora_reference import draw_case, record

SPEC = {"dims": [[10, 12], [12, 12], [12, 8]], "ncls": 3, "batch": 8, "lora_alpha": 8}
CASE = {
    "dtype": "float64", "opt": "adamw", "lr": 0.005, "wd": 0.0, "clip": 0.0, "ti": 6, "tf": 8, "dt": 1,
    "b1": 0.85, "b2": 0.85, "gamma": 0.1, "r": 4, "target": 2, "T": 36,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "adamw": {},
    "binding_clip": {"clip": 0.05, "dt": 3, "gamma": 0.3, "wd": 0.01},
    "sgd": {"opt": "sgd", "lr": 0.5, "dt": 2, "b1": 0.7, "b2": 0.95},
    "adamw_f32": {"dtype": "float32", "dt": 5, "gamma": 0.3},
}


class Network(nn.Module):
    """The recorded network: h = tanh(l0 x), then h += tanh(l_i h) for the middle layers, h = tanh(l_last h), head."""

    def __init__(self, spec: dict[str, Any], arrays: Any) -> None:
        super().__init__()
        self.count = len(spec["dims"])
        for name in [f"l{i}" for i in range(self.count)] + ["head"]:
            weight = torch.from_numpy(arrays[f"init/{name}.weight"].copy())
            linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
            with torch.no_grad():
                linear.weight.copy_(weight)
                linear.bias.copy_(torch.from_numpy(arrays[f"init/{name}.bias"].copy()))
            self.add_module(name, linear)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i in range(self.count):
            y = torch.tanh(self.get_submodule(f"l{i}")(x))
            x = x + y if 0 < i < self.count - 1 else y
        logits: torch.Tensor = self.get_submodule("head")(x)
        return logits


def parameter(model: Network, name: str) -> np.ndarray[Any, Any]:
    """A parameter under its recorded name and in its recorded shape."""
    layer, _, part = name.partition(".")
    module = model.get_submodule(layer)
    attribute = {"lora_A": "Q", "lora_E": "lam", "lora_B": "P"}.get(part, part)
    array: np.ndarray[Any, Any] = getattr(module, attribute).detach().numpy()
    return array[:, None] if part == "lora_E" else array.T if part == "lora_B" else array


def check(spec: dict[str, Any], case: dict[str, Any], arrays: Any, accumulation: int = 1) -> dict[str, Any]:
    """Replay one case; returns the number of mismatches and the largest error of each quantity."""
    model = Network(spec, arrays)
    names = [f"l{i}" for i in range(model.count)]
    adapters = adarank.adapt(model, "svd", case["r"], names, alpha=spec["lora_alpha"], train=["head"])
    with torch.no_grad():
        for name, adapter in adapters.items():
            adapter.Q.copy_(torch.from_numpy(arrays[f"init/{name}.lora_A"]))
            adapter.lam.copy_(torch.from_numpy(arrays[f"init/{name}.lora_E"][:, 0]))
            adapter.P.copy_(torch.from_numpy(arrays[f"init/{name}.lora_B"].T.copy()))
    n = len(names)
    score = adarank.scores.adalora(case["b1"], case["b2"])
    controller = adarank.RankController(
        adapters,
        score=score,
        schedule=adarank.schedules.cubic(
            case["r"] * n, case["target"] * n, case["ti"], case["tf"], case["T"], case["dt"]
        ),
        penalty=adarank.penalties.orthogonality(case["gamma"]),
        variant="original",
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    kind: Any = torch.optim.SGD if case["opt"] == "sgd" else torch.optim.AdamW  # betas (0.9, 0.999), eps 1e-8
    optimizer = kind(trained, lr=case["lr"], weight_decay=case["wd"])
    controller.attach(optimizer)

    recorded_steps = arrays["param_after/steps"] if "param_after/steps" in arrays else np.arange(case["T"])
    parameters = [
        k.removeprefix("param_after/") for k in arrays if k.startswith("param_after/") and k != "param_after/steps"
    ]
    error = dict.fromkeys(("loss", "lambda", "score", "threshold", "parameter"), 0.0)
    mismatches = {"mask": 0, "mask_beyond_rounding": 0, "schedule": 0}
    for t in range(case["T"]):
        x, y = torch.from_numpy(arrays["X"][t]), torch.from_numpy(arrays["Y"][t]).long()
        loss = 0.0
        for part_x, part_y in zip(x.chunk(accumulation), y.chunk(accumulation), strict=True):
            part = F.cross_entropy(model(part_x), part_y) * len(part_x) / len(x)
            part.backward()
            loss += part.item()
        controller.after_backward()
        if case["clip"] > 0:
            nn.utils.clip_grad_norm_(trained, case["clip"])
        optimizer.step()
        optimizer.zero_grad()

        def worst(key: str, actual: Any, expected: Any) -> None:
            error[key] = max(error[key], float(np.abs(np.asarray(actual) - np.asarray(expected)).max()))

        scores, expected = score.score(controller.buffers, controller.bank).numpy(), arrays["step/scores"][t]
        size = max(float(np.abs(expected).max()), np.finfo(expected.dtype).tiny)
        worst("loss", loss, arrays["step/loss_task"][t])
        worst("lambda", controller.bank.lam.numpy(), arrays["step/lam_after"][t])
        worst("score", scores / size, expected / size)
        masks, budget = controller.schedule.due(t), controller.schedule.budget(t)
        mismatches["schedule"] += int(masks != bool(arrays["step/is_mask_step"][t]))
        mismatches["schedule"] += int(budget != int(arrays["step/curr_rank"][t]))
        if masks:
            threshold = np.sort(scores)[len(scores) - budget - 1] if budget < len(scores) else 0.0
            recorded = arrays["step/threshold"][t]
            worst("threshold", threshold / size, recorded / size)
            differ = controller.bank.mask.numpy() != arrays["step/keep"][t]
            near = np.abs(expected - recorded) < 1e-4 * abs(recorded)
            mismatches["mask"] += int(differ.sum())
            mismatches["mask_beyond_rounding"] += int((differ & ~near).sum())
        where = np.flatnonzero(recorded_steps == t)
        for name in parameters if len(where) else ():
            worst("parameter", parameter(model, name), arrays[f"param_after/{name}"][where[0]])
    exact = case["dtype"] == "float64"
    limit = 1e-9 if exact else 2e-4
    wrong = mismatches["schedule"] + mismatches["mask" if exact else "mask_beyond_rounding"]
    passed = wrong == 0 and all(error[key] < limit for key in ("lambda", "score", "threshold", "parameter"))
    return {"passed": passed, "mismatches": mismatches, "largest_error": error, "limit": limit, "steps": case["T"]}


def make(folder: Path) -> None:
    """Record the shipped cases with the slow reference."""
    folder.mkdir(parents=True, exist_ok=True)
    cases = {name: {**CASE, **changes} for name, changes in CASES.items()}
    for seed, (name, case) in enumerate(cases.items()):
        start = draw_case(SPEC, case, seed)
        np.savez_compressed(folder / f"{name}.npz", **start, **record(SPEC, case, start))  # type: ignore[arg-type]
    write_text(folder / "spec.json", json.dumps({**SPEC, "cases": cases}, indent=2) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--make", action="store_true", help="record the shipped cases into FOLDER first")
    options = parser.parse_args()
    if options.make:
        make(options.folder)
    if not (options.folder / "spec.json").is_file():
        print(f"error: FOLDER must hold a spec.json (got {options.folder})", file=sys.stderr)
        return 2
    spec = json.loads((options.folder / "spec.json").read_text(encoding="utf-8"))
    results = {}
    for name, case in spec["cases"].items():
        if not (options.folder / f"{name}.npz").is_file():
            print(
                f"error: FOLDER must hold {name}.npz, which its spec.json names (got {options.folder})", file=sys.stderr
            )
            return 2
        with np.load(options.folder / f"{name}.npz", allow_pickle=False) as arrays:
            results[name] = result = check(spec, case, {key: arrays[key] for key in arrays.files})
        errors = "  ".join(f"{key} {value:.1e}" for key, value in result["largest_error"].items())
        counts = "  ".join(f"{key} {value}" for key, value in result["mismatches"].items())
        print(f"{'pass' if result['passed'] else 'FAIL'}  {name}: mismatches: {counts};  largest errors: {errors}")
    if options.json:
        write_json(options.json, {"versions": {"torch": torch.__version__, "numpy": np.__version__}, "cases": results})
    return 0 if all(result["passed"] for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
