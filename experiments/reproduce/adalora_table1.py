"""AdaLoRA's Table 1 with one code path at every scale: AdaLoRA against LoRA, full fine-tuning and the uniform control.

    python experiments/reproduce/adalora_table1.py --scale small --data GLUE --tasks cola,sst2 \\
        --out runs/table1 --results experiments/results/adalora_table1

It follows experiments/protocol.py (rates tuned on a split taken from train, then seeds) with adalora_table1.yaml.
--data names the folder with GLUE's tasks; without it they come from the hub. At the scale `paper` the scores themselves
are compared. Below it, only the difference AdaLoRA − LoRA over the same seeds is compared with the paper's, and no cell
is called reproduced. Finished runs are skipped; --read trains nothing and writes the reports from --results.
"""

import sys
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import yaml

from adarank.errors import SettingError
from adarank.runs.files import write_json
from adarank.runs.packed import read_records
from analysis.stats.intervals import mean_interval
from experiments.protocol import Place, arguments, follow, reports
from experiments.study import Study, read

RECIPES = Path(__file__).resolve().parents[2] / "conf" / "recipe_by_task"


def study(content: Mapping[str, Any], scale: str, data: Path | None) -> Study:
    """The study at a scale; data: the folder with GLUE's tasks."""
    of_scale = content["scales"][scale]
    methods = of_scale.get("methods", {name: {} for name in content["methods"]})
    tasks = of_scale.get("tasks", {})
    return read(
        {
            "settings": of_scale["settings"],
            "tasks": {name: task(name, scale, data, tasks.get(name, {})) for name in content["tasks"]},
            "budgets": of_scale.get("budgets", content["budgets"]),
            "methods": {name: {**content["methods"][name], **more} for name, more in methods.items()},
            "tuning": of_scale["tuning"],
            "seeds": of_scale["seeds"],
            "checkpoint": content["checkpoint"],
        }
    )


def task(name: str, scale: str, data: Path | None, of_scale: Mapping[str, Any]) -> dict[str, Any]:
    """A task's part of the study. of_scale: its settings and rates at this scale.

    At the paper's scale the recipe sets the schedule's phases and γ; below it the phases are fractions of the steps.
    """
    where = {} if data is None else {"task.path": str(data)}
    rates, more = of_scale.get("rates", {}), of_scale.get("settings", {})
    if scale == "paper":
        return {"settings": {"task": name, **where, **more}, "rates": rates}
    shared, phased = (yaml.safe_load((RECIPES / r / f"{name}.yaml").read_text()) for r in ("adalora_shared", "adalora"))
    steps = shared["train"]["steps"]
    phases = {f"schedule.{key}": round(phased["schedule"][key] / steps, 4) for key in ("t_i", "t_f")}
    return {
        "settings": {"task": name, "task.max_length": shared["task"]["max_length"], **where, **more},
        "adaptive": {**phases, "penalty.gamma": phased["penalty"]["gamma"]},
        "rates": rates,
    }


def scores(results: Path, task: str, method: str, rank: int | None) -> dict[int, tuple[float, float]]:
    """{seed: test metric in points, of the best checkpoint and of the last} of the finished runs; rank: None for
    any."""
    found = {}
    for _, record in read_records(results / "seeds" / task / method):
        metric = record["summary"]["metric"]
        if rank in (None, record["config"]["rank"]):
            found[record["config"]["seed"]] = (100 * metric["test"], 100 * metric["test_last"])
    return found


def difference(one: Mapping[int, Any], other: Mapping[int, Any], which: int) -> dict[str, Any]:
    """one − other over the seeds that both have: the mean and its 95 % interval (Student's t), in points."""
    pairs = [one[seed][which] - other[seed][which] for seed in sorted(one.keys() & other.keys())]
    if not pairs:
        return {"pairs": 0, "mean": None, "interval": None}
    mean, half = mean_interval(pairs)
    return {"pairs": len(pairs), "mean": mean, "interval": None if half is None else [mean - half, mean + half]}


def cell(asked: Study, paper: Mapping[str, Any], results: Path, task: str, rank: int, other: str) -> dict[str, Any]:
    """AdaLoRA − other at one task and budget, for the last checkpoint, which is compared with the paper's, and the
    best."""
    ranked = asked.methods[other].get("ranked", True)
    ours = scores(results, task, "adalora", rank), scores(results, task, other, rank if ranked else None)
    found = {which: difference(*ours, i) for i, which in enumerate(("best", "last"))}
    reported = (paper[other][rank] if ranked else paper[other]) if other in paper else None
    theirs = None if reported is None else round(paper["adalora"][rank][task] - reported[task], 2)
    interval, mean = found["last"]["interval"], found["last"]["mean"]
    decides = interval is not None and theirs is not None
    return {
        "task": task,
        "rank": rank,
        "against": other,
        **found,
        "adalora": _mean(ours[0]),
        other: _mean(ours[1]),
        "paper": theirs,
        "same_sign": mean * theirs > 0 if decides else None,
        "paper_in_interval": interval[0] <= theirs <= interval[1] if decides else None,
    }


def _mean(found: Mapping[int, tuple[float, float]]) -> float | None:
    return sum(last for _, last in found.values()) / len(found) if found else None


def line(found: Mapping[str, Any]) -> str:
    last, name = found["last"], f"{found['task']}, r = {found['rank']}, AdaLoRA − {found['against']}"
    if last["interval"] is None:
        return f"{name}: {last['pairs']} pairs, too few for an interval"
    low, high = last["interval"]
    text = f"{name}: {last['mean']:+.2f} [{low:+.2f}, {high:+.2f}] of {last['pairs']} pairs"
    if found["paper"] is None:
        return text
    sign = "same sign" if found["same_sign"] else "other sign"
    return f"{text}; paper {found['paper']:+.2f} ({sign}, {'in' if found['paper_in_interval'] else 'out'}side ours)"


def main() -> int:
    parser = arguments(__doc__)
    content = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    parser.add_argument("--scale", choices=tuple(content["scales"]), required=True)
    parser.add_argument("--data", type=Path, help="the folder with GLUE's tasks; without it, the hub")
    options, overrides = parser.parse_known_args()
    try:
        asked = study(content, options.scale, options.data and options.data.absolute())
        place = Place(options.out, options.results, overrides, options.jobs)
        if not options.read:
            follow(asked, place, options.tasks)
        reports(place)
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    tasks = [task for task in asked.tasks if (options.results / "seeds" / task).is_dir()]
    others = [name for name in asked.methods if name != "adalora"]
    cells = [cell(asked, content["paper"], options.results, *at) for at in product(tasks, asked.budgets, others)]
    differs = content["scales"][options.scale].get("differs")
    write_json(options.results / f"table1_{options.scale}.json", {"differs": differs, "cells": cells})
    print("Points of the task's metric, last checkpoint: mean and 95 % interval of the paired differences")
    print("\n".join(map(line, cells)))
    if differs:
        print(f"Not a reproduction: {differs}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
