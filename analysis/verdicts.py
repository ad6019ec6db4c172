"""Each configuration against LoRA over common seeds, saying no more than the seeds allow."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from analysis import formats, stats
from analysis.pairs import Comparison, compare
from analysis.rows import Row
from analysis.tables import Table

LEVEL = 0.05
MARGIN = 0.005  # half a point: a smaller difference has no practical meaning on a 0..1 scale


@dataclass(frozen=True)
class Verdict:
    """text: `<method> better`, `equivalent` or `cannot be decided with n pairs`; the rest is what it rests on.

    difference: mean over tasks and pairs, None without pairs; interval: BCa at 95%; p, wilcoxon: plain; holm, equal:
    Holm-adjusted sign-flip and TOST (None where there is no margin); attainable: the smallest `holm` there could be;
    effect: Hedges' g; improvement: P(a run is better than one of the other's); detectable: the minimum detectable
    effect at the level of Holm's first step.
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


def verdicts(table: Table, last_checkpoint: bool = False) -> list[Verdict]:
    """The verdict on every tuned row of `table` that is not itself LoRA, none where there is no LoRA row.

    By the test value of the checkpoint that is best on dev, or of the last one: then only rows that have pairs.
    """
    references = table.references
    pairs = [(row, references[row]) for row in table.tuned if references and row is not references[row]]
    return between(table, pairs, last_checkpoint)


def between(table: Table, pairs: Iterable[tuple[Row, Row]], last_checkpoint: bool = False) -> list[Verdict]:
    """The verdicts on pairs of the table's rows, corrected together."""
    labels, kinds = table.labels, table.kinds
    found = [
        compare(labels[one], labels[other], (kinds[one], kinds[other]), [(one, other)], last_checkpoint)
        for one, other in pairs
    ]
    found = [one for one in found if one.runs or not last_checkpoint]
    return judge(found, MARGIN if unit_scale(table) else None, table.higher_is_better)


def judge(comparisons: Iterable[Comparison], margin: float | None, higher_is_better: bool) -> list[Verdict]:
    """A verdict on each; p values of all of them are Holm-adjusted together, those of the tests of equivalence too.

    Where even the smallest p that the pairs could attain stays above LEVEL after the correction, nothing is decided:
    not a difference, and not its absence. Without a margin nothing is called equivalent.
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


def _text(c: Comparison, pairs: int, sign: float, adjusted: float, least: float, equal: float) -> str:
    if least <= LEVEL and equal <= LEVEL:  # also when the difference is real: it is smaller than the margin
        return "equivalent"
    if least <= LEVEL and adjusted <= LEVEL:
        d = c.differences
        better = sign * float(stats.task_mean(d[:, np.isfinite(d).any(0)])) > 0
        return f"{c.methods[0] if better else c.methods[1]} better"
    return f"cannot be decided with {pairs} pairs"


def unit_scale(table: Table) -> bool:
    """Whether half a point means something: a metric to maximise whose values stay within -1..1."""
    return table.higher_is_better and all(abs(score) <= 1 for row in table.rows for score in row.scores.values())


HEADER = ("comparison", "verdict", "difference", "95% BCa", "p (Holm)", "attainable", "Wilcoxon", "equivalent",
          "detectable", "g", "P(better)", "pairs")  # fmt: skip


def cells(verdict: Verdict) -> list[str]:
    """One verdict as strings, one for each name in HEADER."""
    both = formats.probability(verdict.p)
    if formats.probability(verdict.holm) != both:
        both += f" ({formats.probability(verdict.holm)})"
    return [
        f"{verdict.comparison.label} − {verdict.comparison.against}",
        verdict.text,
        formats.metric(verdict.difference, "+"),
        formats.span(verdict.interval),
        both,
        formats.probability(verdict.attainable),
        formats.probability(verdict.wilcoxon),
        formats.BLANK if verdict.equal is None else formats.probability(verdict.equal),
        formats.metric(verdict.detectable),
        formats.significant(verdict.effect),
        formats.significant(verdict.improvement),
        str(verdict.pairs),
    ]
