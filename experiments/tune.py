"""Try each method's grid of learning rates and write down what came out; the best is chosen on dev, never on test.

    python experiments/tune.py --json experiments/results/quickstart_lr.json --out runs/lr experiment=quickstart seed=2

Everything after the options is passed to experiments/run.py. Finished runs are skipped, so that an interrupted search
goes on where it stopped.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from adarank.harness.files import write_json  # noqa: E402


def trials(out: Path, method: str) -> list[dict[str, Any]]:
    """Every finished run of `method` under `out`: its learning rate, seed, metric on dev and what it ran on."""
    found = []
    for path in sorted(out.glob(f"{method}-*/summary.json")):
        summary = json.loads(path.read_text(encoding="utf-8"))
        config = yaml.safe_load((path.parent / "config.yaml").read_text(encoding="utf-8"))
        if summary["status"] == "finished":
            keys = ("model", "task", "targets", "seed", "steps", "device", "commit", "dirty")
            found.append(
                {
                    "run": path.parent.name,
                    "lr": config["train"]["lr"],
                    "rank": config["rank"],
                    **{key: summary[key] for key in keys},
                    **{key: summary["metric"][key] for key in ("name", "higher_is_better", "best", "last")},
                }
            )
    return sorted(found, key=lambda trial: (trial["lr"], trial["seed"]))


def best(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The learning rate with the best mean of the last dev values, and whether it lies at the edge of its grid."""
    rates = sorted({trial["lr"] for trial in found})
    means = {lr: sum(t["last"] for t in found if t["lr"] == lr) / sum(t["lr"] == lr for t in found) for lr in rates}
    chosen = (max if found[0]["higher_is_better"] else min)(means, key=lambda lr: means[lr])
    return {"lr": chosen, "mean_last_dev": means[chosen], "at_the_edge": chosen in (rates[0], rates[-1])}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="the result file to write")
    parser.add_argument("--out", type=Path, required=True, help="the folder for the runs")
    parser.add_argument("--grids", type=Path, default=HERE / "grids.yaml", help="{method: learning rates}")
    options, overrides = parser.parse_known_args()
    grids = yaml.safe_load(options.grids.read_text(encoding="utf-8"))
    for method, rates in grids.items():
        sweep = f"train.lr={','.join(map(str, rates))}"
        command = [
            sys.executable,
            str(HERE / "run.py"),
            "-m",
            f"method={method}",
            sweep,
            f"out={options.out}",
            *overrides,
        ]
        if status := subprocess.run(command).returncode:
            return status
    found = {method: trials(options.out, method) for method in grids}
    result = {"grids": grids, "chosen": {m: best(t) for m, t in found.items()}, "trials": found}
    write_json(options.json, result)
    for method, chosen in result["chosen"].items():
        edge = ", at the edge of its grid: widen it" if chosen["at_the_edge"] else ""
        print(f"{method}: lr {chosen['lr']:g} ({chosen['mean_last_dev']:.4f} on dev{edge})")
    print(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
