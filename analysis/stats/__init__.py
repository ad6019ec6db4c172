"""Statistics over a matrix of runs × tasks, NaN where a run is missing. Numpy in, numbers out, the Generator passed in.

intervals: t and bootstrap; paired: tests on task × seed pairs; effects: how large a difference is; ranks: whether two
orders agree.
"""

from analysis.stats import ranks
from analysis.stats.effects import hedges_g, minimum_detectable, probability_of_improvement, tost_p
from analysis.stats.intervals import bootstrap_interval, mean_interval, task_mean
from analysis.stats.paired import attainable, holm, sign_flip_p, smallest_p, wilcoxon_p
from analysis.stats.ranks import Agreement, agreement, spearman, top_overlap

__all__ = [
    "Agreement",
    "agreement",
    "attainable",
    "bootstrap_interval",
    "hedges_g",
    "holm",
    "mean_interval",
    "minimum_detectable",
    "probability_of_improvement",
    "ranks",
    "sign_flip_p",
    "smallest_p",
    "spearman",
    "task_mean",
    "top_overlap",
    "tost_p",
    "wilcoxon_p",
]
