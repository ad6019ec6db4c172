"""Each configuration against LoRA over common seeds, saying no more than the seeds allow."""

from dataclasses import dataclass

import numpy as np

from analysis import formats, stats
from analysis.tables import Row, Table

LEVEL = 0.05
MARGIN = 0.005  # half a point: a smaller difference has no practical meaning on a 0..1 scale


@dataclass(frozen=True)
class Verdict:
    """text: `<method> better`, `equivalent` or `cannot be decided with n pairs`; detail: the numbers behind it."""

    row: Row
    reference: Row
    text: str
    detail: str


def verdicts(table: Table) -> list[Verdict]:
    """The verdict on every row of `table` that is not itself LoRA, none where there is no LoRA row.

    Seeds pair the runs. p values (sign-flip, two-sided) and those of the equivalence test (TOST, ±MARGIN) are each
    Holm-adjusted over the table's rows. Too few pairs for the sign-flip test to reach LEVEL decide nothing at all.
    """
    pairs = [(row, reference) for row, reference in table.references.items() if row is not reference]
    differences = [_differences(row, reference) for row, reference in pairs]
    margin = MARGIN if _unit_scale(table) else None
    different = np.array([stats.sign_flip_p(d, np.random.default_rng(0)) for d in differences])
    equal = np.array([stats.tost_p(d, margin) if margin else 1.0 for d in differences])
    corrected = zip(stats.holm(different), stats.holm(equal), strict=True)
    return [
        Verdict(
            row,
            reference,
            text=_text(row, reference, d, *holm, table.higher_is_better),
            detail=_detail(d, (p, holm[0]), (q, holm[1]), margin),
        )
        for (row, reference), d, p, q, holm in zip(pairs, differences, different, equal, corrected, strict=True)
    ]


def _text(row: Row, reference: Row, d: np.ndarray, different: float, equal: float, higher_is_better: bool) -> str:
    if stats.smallest_p(d.size) > LEVEL:
        return f"cannot be decided with {d.size} pairs"
    if equal <= LEVEL:  # also when the difference is real: it is smaller than the margin
        return "equivalent"
    if different <= LEVEL:
        return f"{row.method if (d.mean() > 0) == higher_is_better else reference.method} better"
    return f"cannot be decided with {d.size} pairs"


def _detail(d: np.ndarray, different: tuple[float, float], equal: tuple[float, float], margin: float | None) -> str:
    """The mean difference and each test's p, plain and after Holm's correction."""
    if not d.size:
        return "no common seed"
    lines = [f"mean difference {formats.metric(float(d.mean()), '+')}", f"sign-flip {_both(different)}"]
    if stats.smallest_p(d.size) > LEVEL:
        lines.append(f"{d.size} pairs cannot go below p = {stats.smallest_p(d.size):.3g}")
    elif margin:
        lines.append(f"equivalence within ±{margin:g}: {_both(equal)}")
    return "; ".join(lines)


def _both(p: tuple[float, float]) -> str:
    plain, corrected = map(formats.probability, p)
    return f"p {plain}" if plain == corrected else f"p {plain} (Holm {corrected})"


def _differences(row: Row, reference: Row) -> np.ndarray:
    """row - reference [common seeds], float64."""
    common = sorted(row.scores.keys() & reference.scores.keys())
    return np.array([row.scores[seed] - reference.scores[seed] for seed in common], dtype=np.float64)


def _unit_scale(table: Table) -> bool:
    """Whether half a point means something: a metric to maximise whose values stay within -1..1."""
    return table.higher_is_better and all(abs(score) <= 1 for row in table.rows for score in row.scores.values())
