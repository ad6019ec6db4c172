"""Verdicts on paired scores: paired t tests whose intervals hold simultaneously over a whole family of comparisons.

One interval decides: it lies within the margin (equivalent, if an assay shows a difference), excludes 0 (one is
better), or neither (undecided). If too few pairs learned anything, only how often the methods collapse can decide. A
study declares its family beforehand (claims.json); a folder without claims gets a default family, each method against
LoRA. All other comparisons are exploratory and have no verdict.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from analysis import formats, stats
from analysis.claims import ASSAY, Claim, Claims, Look
from analysis.load import Run
from analysis.rows import Row, group
from analysis.settings import REFERENCE
from analysis.tables import Table, kind_and_ranks

K = TypeVar("K")

LEVEL = 0.05
MARGIN = 0.005  # half a point: a smaller difference has no practical meaning on a 0..1 scale
FEWEST = 3  # pairs; with fewer, the spread of the differences is a guess
MANY_TASKS = 5  # tasks; with fewer, an interquartile mean and a profile over tasks are meaningless
POOLED = 5  # up to this many pairs the spread is at least that pooled over the methods of a table, with its freedom
UNIFORM = "uniform"
UNIFORM_TITLE = "Against the uniform control: the same method and budget, the same rank everywhere"
HEADER = ("comparison", "verdict", "difference", "interval", "p", "sign flip", "P(better)", "pairs",
          "detectable", "g", "spread")  # fmt: skip
EXPLORATORY_HEADER = ("comparison", "difference", "95% interval", "p", "sign flip", "P(better)", "pairs")
COLLAPSE_HEADER = ("comparison", "collapsed", "Fisher's p", "difference over all", "difference where both learned",
                   "pairs where both learned")  # fmt: skip

Kind = Literal["better", "equivalent", "undecided", "impossible"]
Scores = Callable[[Row], Mapping[int, float]]  # a row's scores by seed


@dataclass(frozen=True)
class Comparison:
    """Two methods' scores, one pair per seed.

    methods: the names of the two in a verdict; scores, others: [n], finite; runs: the runs behind them; rows: rows of
    the table, if the scores come from rows; learned: [n], whether neither run of the pair collapsed; name: that of a
    declared claim.
    """

    label: str
    against: str
    methods: tuple[str, str]
    scores: NDArray[np.float64]
    others: NDArray[np.float64]
    runs: tuple[Run, ...] = ()
    rows: tuple[Row, Row] | None = None
    learned: NDArray[np.bool_] | None = None
    name: str = ""

    @property
    def differences(self) -> NDArray[np.float64]:
        return self.scores - self.others


@dataclass(frozen=True)
class Assay:
    """A contrast that must show a difference before "no difference" means anything: more rank, or a control known to be
    worse.

    estimate, interval: of the difference that `label` names; least: three margins; of_rank: whether it compares one
    method at two ranks, so that it tells whether the task responds to rank. shows: whether the first side is better
    beyond doubt, by at least `least`; falls_short: whether the whole interval lies below that. If neither holds, the
    assay is undecided.
    """

    label: str
    estimate: stats.Estimate
    interval: tuple[float, float] | None
    least: float
    higher_is_better: bool
    of_rank: bool

    @property
    def shows(self) -> bool:
        return self.interval is not None and self._gains()[0] > 0 and self._sign * self.estimate.mean >= self.least

    @property
    def falls_short(self) -> bool:
        return self.interval is not None and self._gains()[1] < self.least

    @property
    def _sign(self) -> float:
        return 1.0 if self.higher_is_better else -1.0

    def _gains(self) -> list[float]:
        """The ends of the interval, positive where the first side is better, in rising order."""
        return sorted(self._sign * end for end in self.interval or ())


@dataclass(frozen=True)
class Verdict:
    """kind and text: `<method> better`, `equivalent`, `undecided (about n more seeds)` or `cannot be decided at this
    n`.

    The other fields are its evidence. interval: simultaneous over the family, in which the test has level `level`; p:
    corrected (Bonferroni); sign_flip: uncorrected; effect: Hedges' g; improvement: the share of pairs won;
    detectable: the difference that the test finds four times in five; more: further seeds until it would find the
    observed difference, or the margin if that is larger; learned: the difference over pairs in which neither run
    collapsed, None if no run did; margin: the smallest difference that matters.
    """

    comparison: Comparison
    kind: Kind
    text: str
    estimate: stats.Estimate
    interval: tuple[float, float] | None
    level: float
    p: float
    sign_flip: float
    effect: float | None
    improvement: stats.Share | None
    detectable: float | None
    more: int | None
    pooled: bool
    learned: stats.Estimate | None
    margin: float | None

    @property
    def pairs(self) -> int:
        return self.estimate.pairs

    @property
    def difference(self) -> float | None:
        return self.estimate.mean if self.pairs else None

    @property
    def winner(self) -> str | None:
        """The method that is better, None unless one is."""
        return self.text.removesuffix(" better") if self.kind == "better" else None


class Family(NamedTuple):
    """The comparisons judged on a page. declared: whether a study declared them before it was run; alpha: the chance of
    any false difference; verdicts, assays: those of each table, in the tables' order; missing: declared comparisons
    without runs; per_table: whether alpha holds in each table and not over all of them."""

    declared: bool
    alpha: float
    verdicts: list[list[Verdict]]
    assays: list[list[Assay]]
    missing: list[Claim]
    per_table: bool = False


class AcrossTasks(NamedTuple):
    """title: model, targets and tasks; rows: the configurations compared with LoRA on every task."""

    title: str
    tasks: tuple[str, ...]
    rows: list["Standardised"]


class Standardised(NamedTuple):
    """A configuration against LoRA over tasks. g: Hedges' g of each task; pairs: all differences in standard deviations
    of their task, higher is better; middle: the interquartile mean of the pairs and its interval, for at least
    MANY_TASKS."""

    name: str
    effect: stats.OverTasks
    g: list[float | None]
    pairs: NDArray[np.float64]
    middle: tuple[float, tuple[float, float] | None] | None


def compare(
    table: Table, row: Row, other: Row, name: str = "", scores: Scores = attrgetter("scores"), most: int | None = None
) -> Comparison:
    """Row against other, with one pair per seed that both have in their `scores`, by which they are judged.

    most: if there are more pairs, use only those with the first seeds: those planned, or those that a look judged.
    """
    ours, theirs = scores(row), scores(other)
    seeds = sorted(ours.keys() & theirs.keys())[:most]
    runs = [run for each in (row, other) for run in each.runs if run.seed in seeds]
    failed = row.collapsed | other.collapsed
    called = table.kinds if table.kinds[row] != table.kinds[other] else table.labels
    return Comparison(
        label=table.labels[row],
        against=table.labels[other],
        methods=(called[row], called[other]),
        scores=np.array([ours[seed] for seed in seeds], dtype=np.float64),
        others=np.array([theirs[seed] for seed in seeds], dtype=np.float64),
        runs=tuple(runs),
        rows=(row, other),
        learned=np.array([seed not in failed for seed in seeds], dtype=bool),
        name=name,
    )


def compare_by_key(
    label: str,
    against: str,
    methods: tuple[str, str],
    scores: Mapping[K, float],
    others: Mapping[K, float],
    runs: Sequence[Run] = (),
    most: int | None = None,
) -> Comparison:
    """Compare two mappings, in which values with the same key form a pair. runs: the runs behind them; most: use only
    the first pairs, in the order of `scores`."""
    both = [key for key in scores if key in others][:most]
    ours, theirs = (np.array([values[key] for key in both], dtype=np.float64) for values in (scores, others))
    return Comparison(label, against, methods, ours, theirs, tuple(runs))


def family(
    tables: Sequence[Table], claims: Claims | None = None, looks: Mapping[tuple[str, str, str], Look] | None = None
) -> Family:
    """The verdicts of all tables of a page, on the declared claims or the default family.

    The level is divided by the number of comparisons on the page or, if a study declared so, in each table. A claim is
    judged when all planned seeds have run, or by its last look (`looks`) at the level that this look may spend.
    """
    assays = [_assays(table, claims, looks or {}) for table in tables]
    if claims is None:
        comparisons = [against_reference(table) for table in tables]
        level = LEVEL / max(1, sum(map(len, comparisons)))
        verdicts = [
            judge(of_table, margin_of(table), table.higher_is_better, level, any(assay.shows for assay in of_assays))
            for table, of_table, of_assays in zip(tables, comparisons, assays, strict=True)
        ]
        return Family(False, LEVEL, verdicts, assays, [])
    verdicts, run = [], []
    for table, of_assays in zip(tables, assays, strict=True):
        claimed = _claimed(table, claims, looks or {})
        pooled, responds = _pooled_spread([c for _, c, _ in claimed]), any(assay.shows for assay in of_assays)
        pooled = None if looks else pooled  # the levels of looks are those of plain t tests
        of_table = []
        for claim, comparison, level_now in claimed:
            level = level_now or claims.level(claim.task)
            of = ([comparison], claim.margin, table.higher_is_better)
            (verdict,) = judge(*of, level, responds, pooled, planned=True, alpha=claims.alpha)
            of_table.append(verdict if level_now else not_all_run(verdict, claims.seeds))
            run.append(claim)
        verdicts.append(of_table)
    missing = [claim for claim in claims.each if claim not in run]
    return Family(True, claims.alpha, verdicts, assays, missing, claims.family == "table")


def judge(
    comparisons: Sequence[Comparison],
    margin: float | None,
    higher_is_better: bool,
    level: float = LEVEL,
    responds: bool = False,
    pooled: tuple[float, int] | None = None,
    planned: bool = False,
    alpha: float = LEVEL,
) -> list[Verdict]:
    """A verdict on each comparison of one table. level: of each test, already divided by the size of the family.

    responds: whether an assay showed that a difference can be seen; without it nothing is called equivalent. pooled:
    the spread over all methods and its freedom, by default of these comparisons. planned: whether the number of seeds
    was declared; if so, no verdict asks for more, since adding seeds until p is small finds differences by chance.
    alpha: the level before it was divided, by which p is corrected.
    """
    pooled = pooled or _pooled_spread(comparisons)
    sign = 1.0 if higher_is_better else -1.0
    return [_judge(c, margin, sign, level, responds, pooled, planned, alpha) for c in comparisons]


def exploratory(comparisons: Iterable[Comparison], higher_is_better: bool = True) -> list[list[str]]:
    """The cells of undeclared comparisons for EXPLORATORY_HEADER, with an interval each and no verdict."""
    return [_exploratory_cells(c, 1.0 if higher_is_better else -1.0) for c in comparisons]


def against_reference(table: Table, scores: Scores = attrgetter("scores")) -> list[Comparison]:
    """Each tuned row against its LoRA row, or against the first row if there is no LoRA, on common seeds."""
    tuned = table.tuned
    pairs = [(row, table.baselines.get(row, tuned[0])) for row in tuned]
    found = [compare(table, row, other, scores=scores) for row, other in pairs if row is not other]
    return [comparison for comparison in found if comparison.scores.size]


def against_uniform(table: Table) -> list[Comparison]:
    """Every tuned row against the tuned row with the uniform allocator that has the same method, ranks and settings but
    for those of the allocator and the learning rate; none without such rows. Of arms that differ in the rate alone, the
    one at the control's rate, if there is one. Rank maps have separate comparisons (rank_maps.py)."""
    uniform = [row for row in table.tuned if row.settings.get("allocator") == UNIFORM]
    pairs = [
        (row, control)
        for row in table.tuned
        for control in uniform
        if row not in uniform and not row.is_rank_map and _differ_in_allocator(row, control)
    ]
    at_one_rate = {(_allocator(row), control): row for row, control in pairs if _rate(row) == _rate(control)}
    return [
        compare(table, row, control)
        for row, control in pairs
        if at_one_rate.get((_allocator(row), control), row) is row
    ]


def _differ_in_allocator(row: Row, other: Row) -> bool:
    """Whether two tuned rows may differ only in where the rank goes, and in the learning rate that each chose."""
    same = (row.method, row.requested_ranks) == (other.method, other.requested_ranks)
    return same and all(
        row.visible.get(key) == other.visible.get(key)
        for key in row.visible.keys() | other.visible.keys()
        if key != "train.lr" and group(key) != "allocator"
    )


def _allocator(row: Row) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(item for item in row.visible.items() if group(item[0]) == "allocator"))


def _rate(row: Row) -> str | None:
    return row.visible.get("train.lr")


def across_tasks(tables: Sequence[Table]) -> list[AcrossTasks]:
    """Standardised differences to LoRA over the tasks of a model and targets, with their heterogeneity; none for a
    single task. Raw points of different metrics are never averaged.

    A configuration is a kind of row with its requested ranks, represented on every task by the row that is best on dev
    (each with its own learning rate).
    """
    groups: dict[tuple[str, str, str], list[Table]] = {}
    for table in tables:
        if table.baselines:
            groups.setdefault((table.model, table.targets, table.split), []).append(table)
    result = []
    for (model, targets, split), members in groups.items():
        best = [_best_by_kind(table) for table in members]
        rows = []
        for key in (key for key in best[0] if all(key in of_table for of_table in best)):
            pairs = [
                (of_table[key], table.baselines[of_table[key]]) for of_table, table in zip(best, members, strict=True)
            ]
            if any(row is baseline for row, baseline in pairs):
                continue
            signs = [1.0 if table.higher_is_better else -1.0 for table in members]
            differences = [
                sign * compare(table, *pair).differences
                for sign, table, pair in zip(signs, members, pairs, strict=True)
            ]
            estimates = list(map(stats.paired, differences))
            if (effect := stats.over_tasks(estimates)) is not None:
                names = dict.fromkeys(
                    kind_and_ranks(table, pair[0]) for table, pair in zip(members, pairs, strict=True)
                )
                units = np.concatenate(
                    [d / e.spread for d, e in zip(differences, estimates, strict=True) if e.spread] or [np.zeros(0)]
                )
                name, g = f"{' / '.join(names)} − LoRA", list(map(stats.hedges_g, estimates))
                rows.append(
                    Standardised(name, effect, g, units, _middle(units) if len(members) >= MANY_TASKS else None)
                )
        if rows:
            where = [model, *([f"targets {targets}"] if targets else []), split]
            tasks = tuple(table.task for table in members)
            title = f"{', '.join(where)}, over {len(members)} tasks: {', '.join(tasks)}"
            result.append(AcrossTasks(title, tasks, rows))
    return result


def margin_of(table: Table, claims: Claims | None = None) -> float | None:
    """The smallest difference that matters: as declared for the task, else half a point of a metric within -1..1."""
    if claims is not None and (task := study_task(table, claims)):
        return claims.margins[task]
    unit = table.higher_is_better and all(abs(score) <= 1 for row in table.rows for score in row.scores.values())
    return MARGIN if unit else None


def study_task(table: Table, claims: Claims) -> str | None:
    """The study's name for the table's task, which is also the folder of its runs; None for a task without claims."""
    named = {table.task, *(run.name.partition("/")[0] for row in table.rows for run in row.runs)}
    return next((task for task in claims.margins if task in named), None)


def verdict_cells(verdict: Verdict) -> list[str]:
    """One verdict as strings, one per name in HEADER."""
    return [
        f"{verdict.comparison.label} − {verdict.comparison.against}",
        verdict.text,
        formats.metric(verdict.difference, "+"),
        formats.span(verdict.interval),
        formats.probability(verdict.p),
        formats.probability(verdict.sign_flip),
        formats.share(verdict.improvement),
        str(verdict.pairs),
        formats.metric(verdict.detectable),
        formats.significant(verdict.effect),
        "pooled" if verdict.pooled else "paired",
    ]


def collapse_cells(verdict: Verdict) -> list[str]:
    """How often the runs of a comparison did not learn, for COLLAPSE_HEADER; empty if all learned."""
    if verdict.comparison.rows is None or not any(row.failures[0] for row in verdict.comparison.rows):
        return []
    ours, theirs = (row.failures for row in verdict.comparison.rows)
    learned = verdict.learned or verdict.estimate  # all pairs, if runs diverged but none collapsed
    return [
        f"{verdict.comparison.label} − {verdict.comparison.against}",
        f"{ours[0]} of {ours[1]} against {theirs[0]} of {theirs[1]}",
        formats.probability(stats.fisher_p(ours, theirs)),
        f"{formats.metric(verdict.difference, '+')} {formats.span(stats.interval(verdict.estimate, LEVEL))}",
        f"{formats.metric(learned.mean if learned.pairs else None, '+')} "
        f"{formats.span(stats.interval(learned, LEVEL))}",
        str(learned.pairs),
    ]


def _judge(
    c: Comparison,
    margin: float | None,
    sign: float,
    level: float,
    responds: bool,
    pooled: tuple[float, int] | None,
    planned: bool,
    alpha: float,
) -> Verdict:
    estimate = stats.paired(c.differences)
    pools = pooled is not None and FEWEST <= estimate.pairs <= POOLED
    if pools and pooled is not None:  # never below the pair's own: a method may be noisier than the others
        estimate = estimate._replace(spread=max(estimate.spread, pooled[0]), freedom=pooled[1])
    learned = None if c.learned is None or c.learned.all() else stats.paired(c.differences[c.learned])
    interval = _interval(estimate, level) if learned is None or learned.pairs >= FEWEST else None
    p = min(1.0, stats.p_value(estimate) * alpha / level) if interval else 1.0
    more = _more(estimate, margin, level) if interval else None
    kind, text = _text(c, estimate, interval, sign, margin, responds, more)
    if planned and kind == "undecided" and more is not None:
        text, more = text.partition(" (about")[0], None
    if interval is None and (decided := _learns_more_often(c, level)):
        kind, text, p = "better", f"{decided[0]} better", min(1.0, decided[1] * alpha / level)
    return Verdict(
        comparison=c,
        kind=kind,
        text=text,
        estimate=estimate,
        interval=interval,
        level=level,
        p=p,
        sign_flip=stats.sign_flip_p(c.differences, np.random.default_rng(0)),
        effect=stats.hedges_g(estimate),
        improvement=stats.improvement(sign * c.scores, sign * c.others),
        detectable=stats.minimum_detectable(estimate, level),
        more=more,
        pooled=pools,
        learned=learned,
        margin=margin,
    )


def _interval(estimate: stats.Estimate, level: float) -> tuple[float, float] | None:
    """The t interval; None for fewer than FEWEST pairs, or if a few differences are equal and not 0, which on a coarse
    metric is a coincidence and not certainty."""
    coincidence = estimate.pairs <= POOLED and estimate.spread == 0.0 != estimate.mean
    return None if estimate.pairs < FEWEST or coincidence else stats.interval(estimate, level)


def _learns_more_often(c: Comparison, level: float) -> tuple[str, float] | None:
    """The method whose runs collapse less often and the p of Fisher's exact test; None if that is not decided at
    `level`."""
    if c.rows is None:
        return None
    (k, n), (j, m) = (row.failures for row in c.rows)
    if k + j == 0 or (p := stats.fisher_p((k, n), (j, m))) > level:
        return None
    return (c.methods[0] if k / n < j / m else c.methods[1]), p


def _text(
    c: Comparison,
    estimate: stats.Estimate,
    interval: tuple[float, float] | None,
    sign: float,
    margin: float | None,
    responds: bool,
    more: int | None,
) -> tuple[Kind, str]:
    if interval is None:
        return "impossible", "cannot be decided at this n"
    within = margin is not None and -margin < interval[0] <= interval[1] < margin
    if within and responds:
        return "equivalent", "equivalent"
    if interval[0] > 0 or interval[1] < 0:
        return "better", f"{c.methods[0] if sign * estimate.mean > 0 else c.methods[1]} better"
    if within:
        return "undecided", "undecided (no assay shows that this task responds)"
    if more is None:
        return "impossible", "cannot be decided at this n"
    return "undecided", f"undecided (about {more:,} more seed{'s' if more > 1 else ''})"


def _more(estimate: stats.Estimate, margin: float | None, level: float) -> int | None:
    """Further seeds until the test finds the observed difference, or the margin if that is larger, with 80% power."""
    columns = max(1, round(estimate.freedom / (estimate.pairs - 1)))
    target = max(abs(estimate.mean), margin or 0.0)
    needed = stats.pairs_needed(target, estimate.spread, level, columns=columns)
    return None if needed is None else max(1, needed - estimate.pairs)


def _pooled_spread(comparisons: Sequence[Comparison]) -> tuple[float, int] | None:
    """The spread of a difference pooled over all compared methods, on the seeds that all of them have; None for fewer
    than three methods or FEWEST common seeds, or if runs collapsed, because their noise differs from the others'."""
    rows = list({id(row): row for c in comparisons for row in c.rows or ()}.values())
    seeds = sorted(set.intersection(*(set(row.scores) for row in rows))) if rows else []
    if len(rows) < 3 or len(seeds) < FEWEST or any(row.failures[0] for row in rows):
        return None
    return stats.block_spread([[row.scores[seed] for row in rows] for seed in seeds])


def _claimed(
    table: Table, claims: Claims, looks: Mapping[tuple[str, str, str], Look]
) -> list[tuple[Claim, Comparison, float | None]]:
    """The declared comparisons of the table's task between arms that have runs, each with the level of its test, which
    is None if not all planned seeds have run and no look has judged it."""
    task = study_task(table, claims)
    found: list[tuple[Claim, Comparison, float | None]] = []
    for claim in (claim for claim in claims.each if claim.task == task):
        of, against = claim.arms(table.arms.keys())
        if of not in table.arms or against not in table.arms:
            continue
        rows = table.row_of(of), table.row_of(against)
        comparison, level = _planned(
            table, rows, claims, looks.get((claim.task, of, against)), claims.level(claim.task)
        )
        found.append((claim, replace(comparison, name=claim.name), level))
    return found


def _planned(
    table: Table, rows: tuple[Row, Row], claims: Claims, look: Look | None, level: float
) -> tuple[Comparison, float | None]:
    """Two rows compared over the seeds of the look or else over those planned, with the level of the test: the look's,
    or `level` once all planned seeds have run, and None before."""
    comparison = compare(table, *rows, most=look.seeds if look else claims.seeds)
    all_run = comparison.scores.size + len(rows[0].diverged | rows[1].diverged) >= claims.seeds
    return comparison, look.level if look else level if all_run else None


def not_all_run(verdict: Verdict, seeds: int) -> Verdict:
    """A claim whose planned seeds have not all run: no verdict, and no interval, which would be an unplanned look."""
    text = f"undecided ({verdict.pairs} of {seeds} planned seeds have run)"
    return replace(verdict, kind="undecided", text=text, interval=None, p=1.0, more=None)


def _assays(table: Table, claims: Claims | None, looks: Mapping[tuple[str, str, str], Look]) -> list[Assay]:
    """The declared assay; without claims, LoRA at its highest rank against its lowest, and every method against itself
    with allocator=global_bottom, which prunes the most important triplets first."""
    margin, higher = margin_of(table, claims), table.higher_is_better
    if claims is not None:
        of, against = claims.assay.of, claims.assay.against
        if of not in table.arms or against not in table.arms:
            return []
        rows, look = (
            (table.row_of(of), table.row_of(against)),
            looks.get((study_task(table, claims) or "", ASSAY, ASSAY)),
        )
        comparison, level = _planned(table, rows, claims, look, claims.alpha)
        return [assay(comparison, margin, higher, level)]
    pairs = []
    lora = [row for row in table.tuned if row.method == REFERENCE and row.final_rank]
    ordered = sorted(lora, key=lambda row: row.final_rank or 0.0)
    if lora and ordered[-1].final_rank != ordered[0].final_rank:
        pairs.append((ordered[-1], ordered[0]))
    worst = [row for row in table.tuned if row.settings.get("allocator") == "global_bottom"]
    pairs += [
        (row, control)
        for control in worst
        for row in table.tuned
        if row is not control and _differ_in_allocator(row, control)
    ]
    return [assay(compare(table, *pair), margin, higher) for pair in pairs]


def assay(comparison: Comparison, margin: float | None, higher_is_better: bool, level: float | None = LEVEL) -> Assay:
    """Whether a contrast shows a difference of at least three margins. level: of its interval; None: not to be judged
    yet."""
    estimate, rows = stats.paired(comparison.differences), comparison.rows
    interval = _interval(estimate, level) if level else None
    of_rank = rows is not None and rows[0].method == rows[1].method and rows[0].final_rank != rows[1].final_rank
    label = f"{comparison.label} − {comparison.against}"
    return Assay(label, estimate, interval, 3 * (margin or 0.0), higher_is_better, of_rank)


def _middle(units: NDArray[np.float64]) -> tuple[float, tuple[float, float] | None]:
    """The interquartile mean over all pairs of all tasks, with its BCa interval."""
    interval = stats.bootstrap_interval(units, np.random.default_rng(0), stats.interquartile_mean)
    return float(stats.interquartile_mean(units)), interval


def _best_by_kind(table: Table) -> dict[tuple[str, ...], Row]:
    def key(row: Row) -> tuple[str, ...]:  # a kind names only what differs within its table
        pieces = (row.visible.get(piece, "") for piece in ("allocator", "score", "init", "penalty"))
        return (table.kinds[row], *row.requested_ranks, *pieces)

    return {key(row): row for row in table.best(key)}


def _exploratory_cells(c: Comparison, sign: float) -> list[str]:
    estimate = stats.paired(c.differences)
    interval = _interval(estimate, LEVEL)
    return [
        f"{c.label} − {c.against}",
        formats.metric(estimate.mean if estimate.pairs else None, "+"),
        formats.span(interval),
        formats.probability(stats.p_value(estimate)) if interval else formats.BLANK,
        formats.probability(stats.sign_flip_p(c.differences, np.random.default_rng(0))),
        formats.share(stats.improvement(sign * c.scores, sign * c.others)),
        str(estimate.pairs),
    ]
