"""Statistics of paired runs. Functions take NumPy arrays and a Generator, and return numbers.

paired: the t test, its interval and the sign-flip test; power: the differences that it can find; effects: the size of a
difference; intervals: of single means, and the bootstrap; ranks: agreement of two orderings; auroc: how well a number
separates two kinds of cases; looks: judging before all seeds have run.
"""

from analysis.stats import looks, ranks
from analysis.stats.auroc import auroc, auroc_interval
from analysis.stats.effects import (
    OverTasks,
    Share,
    area_under_curve,
    fisher_p,
    hedges_g,
    improvement,
    interquartile_mean,
    mcnemar_p,
    over_tasks,
)
from analysis.stats.intervals import bootstrap_interval, mean_interval
from analysis.stats.paired import Estimate, block_spread, interval, p_value, paired, sign_flip_p
from analysis.stats.power import minimum_detectable, pairs_needed, power
from analysis.stats.ranks import Agreement, agreement, spearman, top_overlap

__all__ = [
    "Agreement",
    "Estimate",
    "OverTasks",
    "Share",
    "agreement",
    "area_under_curve",
    "auroc",
    "auroc_interval",
    "block_spread",
    "bootstrap_interval",
    "fisher_p",
    "hedges_g",
    "improvement",
    "interquartile_mean",
    "interval",
    "looks",
    "mcnemar_p",
    "mean_interval",
    "minimum_detectable",
    "over_tasks",
    "p_value",
    "paired",
    "pairs_needed",
    "power",
    "ranks",
    "sign_flip_p",
    "spearman",
    "top_overlap",
]
