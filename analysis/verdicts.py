"""Verdicts on paired scores: each configuration against LoRA or its uniform control, per task and over tasks.

A verdict claims no more than the number of pairs allows.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from analysis import formats, stats
from analysis.load import Run
from analysis.rows import Row
from analysis.tables import Table, kind_and_ranks

K = TypeVar("K")

LEVEL = 0.05
MARGIN = 0.005  # half a point: a smaller difference has no practical meaning on a 0..1 scale
UNIFORM = "uniform"
UNIFORM_TITLE = "Against the uniform control: the same method and budget, the same rank everywhere"
HEADER = ("comparison", "verdict", "difference", "95% BCa", "p (Holm)", "attainable", "Wilcoxon", "equivalent",
          "detectable", "g", "P(better)", "pairs")  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """Scores of two methods [seeds, tasks]; a pair is one seed on one task, NaN where either has no run.

    methods: what a verdict calls the two; runs: those of the pairs, for each task the first method's, then the other's.
    """

    label: str
    against: str
    methods: tuple[str, str]
    scores: NDArray[np.float64]
    others: NDArray[np.float64]
    runs: tuple[Run, ...] = ()

    @property
    def differences(self) -> NDArray[np.float64]:
        return self.scores - self.others


@dataclass(frozen=True)
class Verdict:
    """text: `<method> better`, `equivalent` or `cannot be decided with n pairs`; the other fields are its evidence.

    difference: mean over tasks and pairs, None without pairs; interval: BCa at 95%; p, wilcoxon: uncorrected; holm,
    equal: Holm-adjusted sign-flip test and TOST (None where there is no margin); attainable: the smallest possible
    `holm`; effect: Hedges' g; improvement: P(a run is better than one of the other's); detectable: the minimum
    detectable effect at the level of Holm's first step.
    """

    comparison: Comparison
    pairs: int
    text: str
    difference: float | None
    interval: tuple[float, float] | None
    p: float
    holm: float
    attainable: float
    wilcoxon: float
    equal: float | None
    effect: float | None
    improvement: float | None
    detectable: float | None


class AcrossTasks(NamedTuple):
    """title: model, tasks and targets; verdicts: on the configurations that all of the tasks have."""

    title: str
    verdicts: list[Verdict]


def compare(
    label: str,
    against: str,
    methods: tuple[str, str],
    pairs: Sequence[tuple[Row, Row]],
    last_checkpoint: bool = False,
) -> Comparison:
    """Row against baseline, one pair of rows per task; only seeds that both rows have make a pair of scores.

    The scores are those of the checkpoint that is best on dev, or of the last one.
    """
    values = [[row.last_scores if last_checkpoint else row.scores for row in pair] for pair in pairs]
    common = [ours.keys() & theirs.keys() for ours, theirs in values]
    seeds = sorted(set[int]().union(*common))
    scores, others = np.full((2, len(seeds), len(pairs)), np.nan)
    for task, (ours, theirs) in enumerate(values):
        for i, seed in enumerate(seeds):
            if seed in common[task]:
                scores[i, task], others[i, task] = ours[seed], theirs[seed]
    runs = [
        run for pair, both in zip(pairs, common, strict=True) for row in pair for run in row.runs if run.seed in both
    ]
    return Comparison(label, against, methods, scores, others, tuple(runs))


def compare_by_key(
    label: str,
    against: str,
    methods: tuple[str, str],
    scores: Mapping[K, float],
    others: Mapping[K, float],
    runs: Sequence[Run] = (),
) -> Comparison:
    """Two mappings of values on one task: values with the same key make a pair. runs: where they come from."""
    both = [key for key in scores if key in others]

    def column(values: Mapping[K, float]) -> NDArray[np.float64]:
        return np.array([[values[key]] for key in both], dtype=np.float64).reshape(len(both), 1)

    return Comparison(label, against, methods, column(scores), column(others), tuple(runs))


def against_lora(table: Table, last_checkpoint: bool = False) -> list[Verdict]:
    """The verdict on every tuned row of `table` that is not itself LoRA, none where there is no LoRA row.

    By the test value of the checkpoint that is best on dev, or of the last one: then only on rows that have pairs.
    """
    baselines = table.baselines
    pairs = [(row, baselines[row]) for row in table.tuned if baselines and row is not baselines[row]]
    return _judge_rows(table, pairs, last_checkpoint)


def against_uniform(table: Table) -> list[Verdict]:
    """Every tuned row against the tuned row of its method and ranks whose allocator is the uniform one; none without
    such rows. Rank maps have comparisons of their own (rank_maps.py)."""
    uniform = [row for row in table.tuned if row.settings.get("allocator") == UNIFORM]
    controls = {(row.method, row.requested_ranks): row for row in uniform}
    pairs = [
        (row, controls[row.method, row.requested_ranks])
        for row in table.tuned
        if row not in uniform and not row.is_rank_map and (row.method, row.requested_ranks) in controls
    ]
    return _judge_rows(table, pairs)


def across_tasks(tables: Iterable[Table]) -> list[AcrossTasks]:
    """Verdicts over all tasks of a model, targets and split; none for a single task.

    A configuration is a kind of row with the ranks it was asked for, represented on every task by the row that is best
    on dev (each has its own learning rate). Only metrics to maximise within -1..1 may be averaged over tasks; tables
    with other metrics are left out.
    """
    groups: dict[tuple[str, str, str], list[Table]] = defaultdict(list)
    for table in tables:
        if table.baselines and unit_scale(table):
            groups[table.model, table.targets, table.split].append(table)
    result = []
    for (model, targets, split), group in groups.items():
        if len(group) < 2:
            continue
        best = [_best_by_kind(table) for table in group]
        comparisons = []
        for key in (key for key in best[0] if all(key in rows for rows in best)):
            pairs = [(rows[key], table.baselines[rows[key]]) for rows, table in zip(best, group, strict=True)]
            if not any(row is baseline for row, baseline in pairs):
                ours, theirs = (
                    sorted({kind_and_ranks(table, row) for row, table in zip(rows, group, strict=True)})
                    for rows in zip(*pairs, strict=True)
                )
                kinds = (group[0].kinds[pairs[0][0]], group[0].kinds[pairs[0][1]])
                comparisons.append(compare(" / ".join(ours), " / ".join(theirs), kinds, pairs))
        if comparisons:
            where = [model, *([f"targets {targets}"] if targets else []), split]
            title = f"{', '.join(where)}, over {len(group)} tasks: {', '.join(table.task for table in group)}"
            result.append(AcrossTasks(title, judge(comparisons, MARGIN, higher_is_better=True)))
    return result


def judge(comparisons: Iterable[Comparison], margin: float | None, higher_is_better: bool) -> list[Verdict]:
    """A verdict on each; p values of all of them are Holm-adjusted together, as are those of the tests of equivalence.

    Where even the smallest p that the pairs could attain stays above LEVEL after the correction, nothing is decided:
    neither a difference nor its absence. Without a margin nothing is called equivalent.
    """
    comparisons = list(comparisons)
    generator = np.random.default_rng(0)
    d = [c.differences for c in comparisons]
    n = [int(np.isfinite(x).sum()) for x in d]
    p = np.array([stats.sign_flip_p(x, generator) for x in d])
    adjusted, least = stats.holm(p), stats.attainable(p, [stats.smallest_p(k) for k in n])
    equal = stats.holm([stats.tost_p(x, margin) for x in d]) if margin else np.ones(len(d))
    sign = 1.0 if higher_is_better else -1.0
    return [
        Verdict(
            comparison=c,
            pairs=n[i],
            text=_text(c, n[i], sign, adjusted[i], least[i], equal[i]),
            difference=float(stats.task_mean(d[i][:, np.isfinite(d[i]).any(0)])) if n[i] else None,
            interval=stats.bootstrap_interval(d[i], generator),
            p=float(p[i]),
            holm=float(adjusted[i]),
            attainable=float(least[i]),
            wilcoxon=stats.wilcoxon_p(d[i], generator),
            equal=float(equal[i]) if margin else None,
            effect=stats.hedges_g(d[i]),
            improvement=stats.probability_of_improvement(sign * c.scores, sign * c.others),
            detectable=stats.minimum_detectable(d[i], LEVEL / len(d)),
        )
        for i, c in enumerate(comparisons)
    ]


def unit_scale(table: Table) -> bool:
    """Whether half a point means something: a metric to maximise whose values stay within -1..1."""
    return table.higher_is_better and all(abs(score) <= 1 for row in table.rows for score in row.scores.values())


def verdict_cells(verdict: Verdict) -> list[str]:
    """One verdict as strings, one for each name in HEADER."""
    p = formats.probability(verdict.p)
    if formats.probability(verdict.holm) != p:
        p += f" ({formats.probability(verdict.holm)})"
    return [
        f"{verdict.comparison.label} − {verdict.comparison.against}",
        verdict.text,
        formats.metric(verdict.difference, "+"),
        formats.span(verdict.interval),
        p,
        formats.probability(verdict.attainable),
        formats.probability(verdict.wilcoxon),
        formats.BLANK if verdict.equal is None else formats.probability(verdict.equal),
        formats.metric(verdict.detectable),
        formats.significant(verdict.effect),
        formats.significant(verdict.improvement),
        str(verdict.pairs),
    ]


def _judge_rows(table: Table, pairs: Iterable[tuple[Row, Row]], last_checkpoint: bool = False) -> list[Verdict]:
    """The verdicts on pairs of the table's rows, corrected together."""
    labels, kinds = table.labels, table.kinds
    comparisons = [
        compare(labels[row], labels[other], (kinds[row], kinds[other]), [(row, other)], last_checkpoint)
        for row, other in pairs
    ]
    comparisons = [comparison for comparison in comparisons if comparison.runs or not last_checkpoint]
    return judge(comparisons, MARGIN if unit_scale(table) else None, table.higher_is_better)


def _best_by_kind(table: Table) -> dict[tuple[str, ...], Row]:
    def key(row: Row) -> tuple[str, ...]:
        return (table.kinds[row], *row.requested_ranks)

    return {key(row): row for row in table.best(key)}


def _text(c: Comparison, pairs: int, sign: float, adjusted: float, least: float, equal: float) -> str:
    if least <= LEVEL and equal <= LEVEL:  # also when the difference is real: it is smaller than the margin
        return "equivalent"
    if least <= LEVEL and adjusted <= LEVEL:
        d = c.differences
        better = sign * float(stats.task_mean(d[:, np.isfinite(d).any(0)])) > 0
        return f"{c.methods[0] if better else c.methods[1]} better"
    return f"cannot be decided with {pairs} pairs"
