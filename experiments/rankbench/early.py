"""What the first 5 % of the steps show on RankBench: cases for experiments/forecast.py.

    python experiments/rankbench/early.py [--json RANKBENCH] [--cases FILE]
    python experiments/forecast.py experiments/results/rankbench_early.json

A case is AdaLoRA at a setting and mean rank for which rankbench.json also has its uniform control. It has a gain if its
loss is lower by the margin, in the geometric mean over seeds. For every seed the first steps are run at the second rate
of the grid, since the rate that whole runs choose would not be known yet; `agreement` compares them with a run of
another seed on the same problem. docs/protocol.md explains the features. Two more need no step: `low_budget` (minus the
mean rank), and `few_modules` (minus the number of planted modules), which only the designer of a benchmark knows. Cases
at one setting have the same `setting`, and their `stratum` is its number of planted modules.
"""

import argparse
import math
import sys
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from adarank.errors import SettingError
from adarank.runs.files import read_json, write_json
from experiments.forecast import SHARE, agreement, gini, variation
from experiments.rankbench import read
from experiments.rankbench.measure import UNIFORM, Case, make_case, start
from experiments.rankbench.problems import Problem, draw
from experiments.rankbench.settings import Setting, parse

RESULTS = Path(__file__).resolve().parents[1] / "results"
ADAPTIVE = "adalora"
CONTROL = read.control_of(ADAPTIVE)
OTHER = 1000  # added to a seed for the second run on the same problem, whose scores are compared


def first_steps(problem: Problem, case: Case, seed: int, rate: float, batch: int) -> tuple[float, dict[str, float]]:
    """The mean training loss ÷ the untrained base's over the first 5 % of the steps, and {module: its mean score} after
    them (empty without scores)."""
    _, controller, losses = start(problem, case.spec, seed, rate, batch)
    first = list(islice(losses, max(1, int(SHARE * case.spec.train.steps))))
    scores: dict[str, float] = {}
    if controller is not None and controller.score is not None:
        found = controller.observation()
        counts = torch.bincount(found.module, minlength=len(found.names)).tolist()
        scores = {name: part.mean().item() for name, part in zip(found.names, found.scores.split(counts), strict=True)}
    return fmean(first) / problem.untrained["dev"], scores


def features(setting: Setting, rank: int, seeds: list[int], slope: float | None) -> dict[str, float | None]:
    """The features of AdaLoRA at a mean rank, means over the seeds."""
    rate = setting.scale.rates[1]
    case = make_case(ADAPTIVE, setting, rank, setting.scale.steps)
    spreads, variations, agreements = [], [], []
    for seed in seeds:
        problem = draw(setting, seed)
        runs = [first_steps(problem, case, seed + more, rate, setting.scale.batch)[1] for more in (0, OTHER)]
        sizes = [abs(score) for score in runs[0].values()]
        spreads.append(gini(sizes))
        variations.append(variation(sizes))
        agreements.append(agreement(*runs))
    known = [value for value in agreements if value is not None]
    return {
        "gini": fmean(spreads),
        "cv": fmean(variations),
        "agreement": fmean(known) if known else None,
        "slope": slope,
        "low_budget": -float(rank),
        "few_modules": -float(len(setting.ranks)),
    }


def slope_of(setting: Setting, cells: Mapping[str, Mapping[str, Any]], seeds: list[int]) -> float | None:
    """How much lower uniform LoRA's early loss is for every doubling of its rank, from its lowest to its highest rank
    in the record, at one rate; None with one rank. cells: {mean rank: {case: cell}}."""
    ranks = sorted(int(rank) for rank, found in cells.items() if UNIFORM in found)
    if len(ranks) < 2:
        return None
    ends = [make_case(UNIFORM, setting, rank, setting.scale.steps) for rank in (ranks[0], ranks[-1])]
    rate, drops = setting.scale.rates[1], []
    for seed in seeds:
        problem = draw(setting, seed)
        low, high = (first_steps(problem, case, seed, rate, setting.scale.batch)[0] for case in ends)
        drops.append(low - high)
    return fmean(drops) / math.log2(ranks[-1] / ranks[0])


def cases_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A case for every setting and mean rank at which the record has AdaLoRA and its control."""
    cases = []
    for name, held in record["settings"].items():
        setting, cells = parse(name), held["cells"]
        both = [rank for rank, found in cells.items() if {ADAPTIVE, CONTROL} <= found.keys()]
        seeds = sorted({int(seed) for rank in both for seed in cells[rank][ADAPTIVE]["seeds"]})
        slope = slope_of(setting, cells, seeds) if both else None
        for rank in both:
            ratio = read.compare(read.losses(cells[rank][ADAPTIVE]), read.losses(cells[rank][CONTROL]))
            if ratio is None:
                continue
            found = features(setting, int(rank), seeds, slope)
            outcome = {"difference": -math.log(ratio.mean), "margin": math.log(read.MARGIN)}
            shared = {"setting": name, "stratum": f"{len(setting.ranks)} planted modules"}
            cases.append({"case": f"{name}, r = {rank}", "features": found, **outcome, **shared})
            print(f"{name}, r = {rank}: {ratio} of the control's loss, {found}", flush=True)
    return cases


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=RESULTS / "rankbench.json", help="the results of RankBench")
    parser.add_argument("--cases", type=Path, default=RESULTS / "rankbench_early.json", help="the file to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        try:
            record = read_json(options.json)
            settings = record["settings"]
        except (OSError, ValueError, KeyError, TypeError):
            raise SettingError(f"--json must be a file that rankbench/run.py wrote (got {options.json})") from None
        if not options.cases.parent.is_dir():
            raise SettingError(f"--cases must lie in a folder that exists (got {options.cases})")
        cases = cases_of({"settings": settings})
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_json(options.cases, {"share": SHARE, "cases": cases})
    return 0


if __name__ == "__main__":
    sys.exit(main())
