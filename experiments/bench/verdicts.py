"""Simulates sweeps to count how often the verdicts of a report are wrong, and how often they find a true difference.

    python experiments/bench/verdicts.py --json experiments/results/verdicts_simulated.json

A sweep is a page of three tasks, each with LoRA and five other methods, n seeds of each. A score is that of its seed
plus noise, such that the difference of two methods has a standard deviation of one point, rounded to the accuracy of
1,000 rows. Every page is judged by the code that judges a folder without declared claims (analysis/verdicts.py), so
that all 15 comparisons are one family. A page counts as wrong when any verdict calls a method better although none is.

    null        no method differs
    skewed      no method differs, and the noise is exponential
    unequal     no method differs, and one has three times as much noise
    collapse    no method differs, but 15 % of one method's runs end at the majority class
    better      one method of every task is 1.5 standard deviations better; reports how often it is found, on a page of
                three tasks and on a page of a single one
    margin      one method differs by the margin; reports how often it is called equivalent if an assay shows a
                difference
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from numpy.typing import NDArray

from analysis import verdicts
from analysis.rows import Row
from analysis.stats import mean_interval
from analysis.tables import Table
from experiments.bench.pairs import parser, write

METHODS = ("lora", "a", "b", "c", "d", "e")
TASKS = 3
LEVEL, MAJORITY, SPREAD, ROWS = 0.80, 0.50, 0.01, 1_000
COLLAPSED = 0.15
EFFECT = 1.5
SEEDS = (3, 5, 8, 10)


def main() -> None:
    options = arguments().parse_args()
    generator = np.random.default_rng(options.seed)
    found: dict[str, Any] = {}
    for name in ("null", "skewed", "unequal", "collapse"):
        found[name] = {n: false_pages(name, n, options.sweeps, generator) for n in SEEDS}
        print(name, {n: f"{rate:.3f}" for n, rate in found[name].items()}, flush=True)
    for tasks in (1, TASKS):
        rates = {n: power(n, tasks, options.sweeps, generator) for n in SEEDS}
        found[f"better, {tasks} task{'s' if tasks > 1 else ''}"] = rates
        print("better", tasks, {n: f"{rate:.3f}" for n, rate in rates.items()}, flush=True)
    found["margin"] = {n: false_equivalence(n, options.sweeps, generator) for n in SEEDS}
    print("margin", {n: f"{rate:.3f}" for n, rate in found["margin"].items()}, flush=True)
    write(options, ("sweeps", "seed"), methods=len(METHODS), tasks=TASKS, effect=EFFECT, share=found)


def arguments() -> argparse.ArgumentParser:
    options = parser(__doc__)
    options.add_argument("--sweeps", type=int, default=4_000)
    options.add_argument("--seed", type=int, default=0)
    return options


def false_pages(scenario: str, seeds: int, sweeps: int, generator: np.random.Generator) -> float:
    """The share of pages without any difference on which a verdict calls a method better."""
    wrong = 0
    for _ in range(sweeps):
        pages = [table(task, scores(scenario, seeds, generator)) for task in range(TASKS)]
        wrong += any(verdict.kind == "better" for judged in verdicts.family(pages).verdicts for verdict in judged)
    return wrong / sweeps


def power(seeds: int, tasks: int, sweeps: int, generator: np.random.Generator) -> float:
    """The share of the methods with a true advantage of EFFECT that the verdicts call better."""
    hits = 0
    for _ in range(sweeps):
        pages = []
        for task in range(tasks):
            drawn = scores("null", seeds, generator)
            drawn[:, 1] = rounded(drawn[:, 1] + EFFECT * SPREAD)
            pages.append(table(task, drawn))
        hits += sum(judged[0].winner == "a" for judged in verdicts.family(pages).verdicts)
    return hits / sweeps / tasks


def false_equivalence(seeds: int, sweeps: int, generator: np.random.Generator) -> float:
    """The share of comparisons with a true difference of the margin that are called equivalent. Their spread is a fifth
    of the margin, so that the intervals can lie within it."""
    wrong = 0
    for _ in range(sweeps):
        drawn = scores("null", seeds, generator, verdicts.MARGIN / 5)
        drawn[:, 1] = drawn[:, 1] + verdicts.MARGIN
        comparisons = verdicts.against_reference(table(0, drawn))
        judged = verdicts.judge(comparisons, verdicts.MARGIN, True, verdicts.LEVEL / len(comparisons), responds=True)
        wrong += judged[0].kind == "equivalent"
    return wrong / sweeps


def scores(scenario: str, seeds: int, generator: np.random.Generator, spread: float = SPREAD) -> NDArray[np.float64]:
    """Scores of one task [seeds, methods], LoRA first."""
    shape = (seeds, len(METHODS))
    noise = generator.exponential(1.0, shape) - 1 if scenario == "skewed" else generator.normal(size=shape)
    if scenario == "unequal":
        noise[:, 1] *= 3
    of_seed = generator.normal(size=(seeds, 1))
    drawn = LEVEL + spread / np.sqrt(2) * (noise + of_seed)
    if scenario == "collapse":
        drawn[generator.random(seeds) < COLLAPSED, 1] = MAJORITY
    return drawn if spread != SPREAD else rounded(drawn)


def rounded(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    """The values rounded to possible accuracies on ROWS rows."""
    return np.round(drawn * ROWS) / ROWS


def table(task: int, drawn: NDArray[np.float64]) -> Table:
    """A table of finished rows with these scores [seeds, methods]."""
    rows = tuple(row(name, dict(enumerate(column.tolist()))) for name, column in zip(METHODS, drawn.T, strict=True))
    names = {each: each.method for each in rows}
    return Table("model", f"task {task}", "all", "accuracy", "test", True, rows, (), names, names,
                 dict.fromkeys(rows, rows[0]))  # fmt: skip


def row(method: str, of_seed: dict[int, float]) -> Row:
    failed = frozenset(seed for seed, score in of_seed.items() if score <= MAJORITY)
    mean, half_width = mean_interval(list(of_seed.values()))
    return replace(BLANK, configuration=method, method=method, scores=of_seed, collapsed=failed, mean=mean,
                   half_width=half_width, settings={"method": method})  # fmt: skip


BLANK = Row(
    configuration="", method="", targets="all", runs=(), settings={}, scores={}, other_scores={}, majority=MAJORITY,
    collapsed=frozenset(), diverged=frozenset(), mean=0.0, half_width=None, best=None, last=None, scale=None,
    initial_rank=None, final_rank=None, triplets=None, budget=None, ranks={}, trainable=None, kept=None, step_ms=None,
    peak_mib=None, devices=frozenset(), arm=None,
)  # fmt: skip


if __name__ == "__main__":
    main()
