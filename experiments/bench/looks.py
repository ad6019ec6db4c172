"""Simulates judging at looks (analysis/stats/looks.py): its error rates, and the mean number of seeds that it needs.

    python experiments/bench/looks.py --json experiments/results/looks.json

Each cell draws paired differences with a true effect (in standard deviations of a difference), judges them at every
look until the judgement is not "go on", and counts the judgements. `worse`, or `better` if the effect is 0, is an
error, and so is `equivalent` if the effect is at least the margin. For comparison, it reports how often a t test over
all seeds at the same level finds a difference.
"""

import argparse
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from adarank.runs.files import write_json
from analysis import stats

SPREADS = {"normal": 1.0, "heavy tails": math.sqrt(3.0)}  # the second: Student's t with three degrees of freedom


def simulate(
    looks: Sequence[int], alpha: float, margin: float, effect: float, tails: str, simulations: int, seed: int
) -> dict[str, Any]:
    """The share of each judgement, the seeds at the last look (mean and quartiles), and the findings of a t test."""
    draws = np.random.default_rng(seed)
    size = (simulations, looks[-1])
    noise = draws.standard_normal(size) if tails == "normal" else draws.standard_t(3, size) / SPREADS[tails]
    ends = [_end(differences, looks, alpha, margin) for differences in noise + effect]
    words, seeds = Counter(word for word, _ in ends), np.array([n for _, n in ends])
    return {
        "effect": effect,
        "tails": tails,
        "words": {word: words[word] / simulations for word in sorted(words)},
        "mean_seeds": float(seeds.mean()),
        "quartiles": np.quantile(seeds, [0.25, 0.5, 0.75]).tolist(),
        "found_without_looks": float(np.mean([stats.p_value(stats.paired(d)) <= alpha for d in noise + effect])),
    }


def _end(differences: NDArray[np.float64], looks: Sequence[int], alpha: float, margin: float) -> tuple[str, int]:
    """The first judgement other than "go on", and the number of seeds at that look."""
    for n in looks:
        word = stats.looks.judge(differences[:n], looks, alpha, margin).word
        if word != stats.looks.GO_ON:
            break
    return word, n


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the findings to this file")
    parser.add_argument("--looks", type=int, nargs="+", default=[6, 9, 12, 16, 20], help="rising numbers of seeds")
    parser.add_argument("--simulations", type=int, default=20_000)
    parser.add_argument(
        "--claims", type=int, nargs="+", default=[1, 6], help="sizes of the family, by which alpha is divided"
    )
    parser.add_argument("--effects", type=float, nargs="+", default=[0.0, 0.5, 1.0, 2.0], help="true differences")
    parser.add_argument("--margin", type=float, default=0.5)
    options = parser.parse_args()
    alpha, looks, families = 0.05, tuple(options.looks), []
    for count in options.claims:
        settings = (looks, alpha / count, options.margin)
        cells = [simulate(*settings, effect, "normal", options.simulations, 0) for effect in options.effects]
        cells.append(simulate(*settings, 0.0, "heavy tails", options.simulations, 1))
        families.append({"claims": count, "levels": stats.looks.levels(looks, alpha / count), "cells": cells})
        for cell in cells:
            shares = ", ".join(f"{word} {share:.4f}" for word, share in cell["words"].items())
            print(
                f"{count} claims, {cell['effect']:g} SD, {cell['tails']}: {cell['mean_seeds']:.1f} seeds; {shares}; "
                f"without looks {cell['found_without_looks']:.4f}",
                flush=True,
            )
    if options.json:
        about = {"looks": options.looks, "alpha": alpha, "margin": options.margin, "simulations": options.simulations}
        write_json(options.json, {**about, "families": families})
        print(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
