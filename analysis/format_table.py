"""Tables as strings, the same on the terminal, on the page and in the files for a paper."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import NamedTuple

from analysis import (
    curves,
    fairness,
    forgetting,
    formats,
    items,
    prefixes,
    pruning,
    rank_maps,
    score_fidelity,
    stats,
    verdicts,
    weight_change,
)
from analysis.load import Run, number
from analysis.rows import Row
from analysis.settings import PIECES
from analysis.tables import Lines, Search, Table, relative_time, searches
from analysis.verdicts import Comparison, Family, Verdict

TRIALS_HEADER = ("method", "trials", "seeds per trial", "rates tried", "used", "dev", "at the edge",
                 "within a point of the best", "mean over log rate", "α/r")  # fmt: skip
DECISIVE = {
    "method",
    *PIECES,
    "ranks_from",
    "mean rank",
    "n",
    "÷ LoRA",
    "train.lr",
}  # columns of the main table shown first
VERDICT = ("comparison", "verdict", "difference", "interval", "p", "pairs")
COSTS = (("time", "step_ms"), ("memory", "peak_mib"))  # of a run, in its summary
EXPLORATORY = "exploratory: 95% intervals each for itself, no verdict"


class TextTable(NamedTuple):
    """A table with a title; runs: for every row the runs behind its numbers, which the page links; first: the decisive
    columns, which are shown at once (all columns if empty)."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    runs: Sequence[Sequence[Run]] = ()
    first: Sequence[str] = ()


def format_table(table: Table) -> TextTable:
    """The main table: one row per configuration."""
    names = header(table)
    rows = [row_cells(table, row) for row in table.rows]
    decisive = DECISIVE | {_metric_columns(table)[0]}
    first = [name for name in names if name in decisive]
    return TextTable(table.title, names, rows, [row.runs for row in table.rows], first)


def verdict_table(table: Table, family: Family, judged: Sequence[Verdict]) -> list[TextTable]:
    """The verdicts on one table, below a title that states their correction; none without comparisons."""
    if not judged:
        return []
    what = "Declared beforehand" if family.declared else "Not declared beforehand: each method against its reference"
    together = formats.percent(1 - family.alpha)
    each = " or ".join(sorted({formats.percent(1 - verdict.level) for verdict in judged}))
    family_of = "of this table" if family.per_table else "of the family"
    margin = f"; margin ±{verdict_margin:g}" if (verdict_margin := judged[0].margin) else ""
    title = f"{what} ({table.title}; {each} intervals, all {family_of} hold together in {together}{margin})"
    rows = list(map(verdicts.verdict_cells, judged))
    return [TextTable(title, verdicts.HEADER, rows, [verdict.comparison.runs for verdict in judged], VERDICT)]


def further_tables(
    table: Table, judged: Sequence[Verdict] = (), declared: bool = False, times: Mapping[str, float] | None = None
) -> list[TextTable]:
    """The tables below the main one: collapsed runs, exploratory comparisons, further test metrics, learning-rate
    trials, accuracy over budgets, the budget counted four ways, measurements by experiments/probe.py.

    judged: the verdicts on this table; declared: whether a study declared them; times: of a step by method, relative,
    from a benchmark.
    """
    runs = [row.runs for row in table.rows]
    failed = [(cells, verdict) for verdict in judged if (cells := verdicts.collapse_cells(verdict))]
    result = _table(
        "Runs that did not learn: at or below always predicting the most frequent class, or diverged",
        verdicts.COLLAPSE_HEADER,
        ([cells for cells, _ in failed], [list(verdict.comparison.runs) for _, verdict in failed]),
    )
    explore = _explorer(table)
    if declared:
        result += explore("Against LoRA", verdicts.against_reference(table))
    other = "best on dev" if _checkpoint(table) == "last" else "last"
    at_other = verdicts.against_reference(table, attrgetter("other_scores"))
    result += explore(f"Against LoRA with the other checkpoint ({other})", at_other)
    result += explore(verdicts.UNIFORM_TITLE, verdicts.against_uniform(table))
    result += explore(rank_maps.TITLE, rank_maps.map_or_dynamics(table))
    tested = [name for row in table.rows for run in row.runs for name in run.summary.get("test") or {}]
    if names := [name for name in dict.fromkeys(tested) if name != table.metric]:
        lines = [[table.labels[row], *(_further_metric(row, name) for name in names)] for row in table.rows]
        result.append(TextTable("Other test metrics, at the best checkpoint", ["method", *names], lines, runs))
    tried = searches(table)
    if any(len(search.tried) > 1 for search in tried):
        of_search = [[run for row in search.tried.values() for run in row.runs] for search in tried]
        lines = [_trial_cells(table, search) for search in tried]
        result.append(TextTable("Learning-rate trials", TRIALS_HEADER, lines, of_search, TRIALS_HEADER[:7]))
    result += _table(curves.TITLE, curves.HEADER, curves.rows(table))
    result += explore(curves.AGAINST, curves.against_lora(table))
    result += explore(curves.COST, curves.at_equal_cost(table, times or {}))
    result += _table(prefixes.TITLE, prefixes.HEADER, prefixes.rows(table))
    result += explore(prefixes.AGAINST, prefixes.against_lora(table))
    result += _table(items.TITLE, items.HEADER, items.rows(judged))
    result += _table(items.PAIRS_TITLE, items.PAIRS_HEADER, items.mcnemar(judged))
    if rows := [row for row in table.tuned if row.ranks]:
        lines, names = [_budget_cells(table, row) for row in rows], ["method", *fairness.BUDGETS]
        result.append(TextTable("The budget, counted four ways", names, lines, [row.runs for row in rows]))
    result += _table(score_fidelity.TITLE, score_fidelity.HEADER, score_fidelity.rows(table))
    result += _table(score_fidelity.SEEDS_TITLE, score_fidelity.SEEDS_HEADER, score_fidelity.over_seeds(table))
    for aspect, title in score_fidelity.AGAINST.items():
        result += explore(title, score_fidelity.against_pruning_score(table, aspect), True)
    result += _table(pruning.TITLE, pruning.HEADER, pruning.rows(table))
    result += _table(weight_change.TITLE, weight_change.HEADER, weight_change.rows(table))
    result += _table(forgetting.TITLE, forgetting.header(table), forgetting.rows(table))
    result += _table(forgetting.OVER_SEEDS, forgetting.header(table, "method"), forgetting.over_seeds(table))
    result += explore(forgetting.AGAINST, forgetting.against_lora(table), False)
    return result + explore(forgetting.EQUAL_NORM, forgetting.at_equal_norm(table), False)


def runs_table(table: Table) -> TextTable:
    """Every run of the table by itself."""
    names = ["configuration", "seed", f"{table.metric}, {table.split}", "other checkpoint", "dev", "learned"]
    names += ["step, ms", "peak, MiB"]
    lines, runs = [], []
    for row in table.rows:
        for run in row.runs:
            time, memory = (number((run.summary.get(key) or {}).get(name)) for key, name in COSTS)
            learned = formats.BLANK if row.majority is None else "no" if run.seed in row.collapsed else "yes"
            values = [formats.metric(value) for value in (run.score[1], run.other_score, run.dev)]
            costs = [formats.significant(time), formats.significant(memory)]
            lines.append([table.labels[row], str(run.seed), *values, learned, *costs])
            runs.append([run])
    return TextTable("All runs", names, lines, runs)


def across_tables(tables: Sequence[Table]) -> list[TextTable]:
    """Standardised differences over all tasks that share a model and targets."""
    return list(map(_across_table, verdicts.across_tasks(tables)))


def header(table: Table) -> list[str]:
    """The column names of the main table; the metric's column names its split, and the checkpoint if there are two."""
    columns = ["mean rank", "triplets", "trainable", "kept", *_metric_columns(table), "n"]
    columns += ["last dev", "best dev"] if table.split == "test" else ["best dev"]
    return ["method", *table.settings, *columns, "step, ms", "÷ LoRA", "peak, MiB"]


def row_cells(table: Table, row: Row) -> list[str]:
    """One row of the main table, one string per name in `header`."""
    other = formats.BLANK
    if row.other_scores:
        few = f", n = {len(row.other_scores)}" if len(row.other_scores) < len(row.scores) else ""
        other = formats.interval(*stats.mean_interval(list(row.other_scores.values()))) + few
    return [
        row.method,
        *(row.visible.get(key, formats.BLANK) for key in table.settings),
        formats.ranks(row.initial_rank, row.final_rank),
        formats.count(row.triplets),
        formats.count(row.trainable),
        formats.count(row.kept),
        formats.interval(row.mean, row.half_width),
        *([other] if _has_other(table) else []),
        str(len(row.scores)),
        *([formats.metric(row.last)] if table.split == "test" else []),
        formats.metric(row.best),
        formats.significant(row.step_ms),
        formats.ratio(relative_time(row, table.baselines.get(row))),
        formats.significant(row.peak_mib),
    ]


def _across_table(over: verdicts.AcrossTasks) -> TextTable:
    many = len(over.tasks) >= verdicts.MANY_TASKS
    title = f"{over.title} (Hedges' g; random-effects mean, Hartung and Knapp's interval; exploratory)"
    middle = ["interquartile mean, in SDs", "95% BCa"] if many else []
    names = ["comparison", "mean g", "95% interval", "τ between tasks", "I²", *middle, *over.tasks]
    lines = []
    for name, effect, g, _, found in over.rows:
        spread = [formats.metric(effect.mean, "+"), formats.span(effect.interval), formats.metric(effect.tau)]
        of_pairs = [formats.metric(found[0], "+"), formats.span(found[1])] if found else []
        lines.append([name, *spread, formats.percent(effect.i2), *of_pairs, *(formats.metric(x, "+") for x in g)])
    return TextTable(title, names, lines)


def _has_other(table: Table) -> bool:
    """Whether any run was measured on test with both checkpoints."""
    return any(row.other_scores for row in table.rows)


def _checkpoint(table: Table) -> str:
    """The checkpoint that the table's runs are judged by."""
    return table.rows[0].runs[0].checkpoint


def _metric_columns(table: Table) -> list[str]:
    if table.split != "test":
        return [f"{table.metric}, last dev"]
    if not _has_other(table):
        return [f"{table.metric}, test"]
    columns = [f"{table.metric}, test, {which} checkpoint" for which in ("last", "best")]
    return columns if _checkpoint(table) == "last" else columns[::-1]


def _further_metric(row: Row, name: str) -> str:
    """The mean over the seeds, or the reason why a seed has none."""
    values = [number((run.summary.get("test") or {}).get(name)) for run in row.runs]
    known = [value for value in values if value is not None]
    if len(known) == len(values):
        return formats.interval(*stats.mean_interval(known))
    reasons = {(run.summary.get("not_computed") or {}).get(name) for run in row.runs} - {None}
    return f"not computed ({'; '.join(sorted(map(str, reasons)))})" if reasons else formats.BLANK


def _trial_cells(table: Table, search: Search) -> list[str]:
    """One search, one string per name in TRIALS_HEADER."""
    seeds = sorted({len(row.scores) for row in search.tried.values()})
    width = curves.rate_width(search, table.higher_is_better)
    return [
        search.name,
        str(len(search.tried)),
        str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}",
        ", ".join(f"{rate:g}" for rate in search.tried),
        search.chosen.settings["train.lr"],
        formats.metric(search.chosen.dev),
        "yes" if search.at_edge else formats.BLANK if len(search.tried) == 1 else "no",
        formats.BLANK
        if width is None
        else f"{width[0]:g} to {width[1]:g} ({formats.significant(width[1] / width[0])}×)",
        formats.metric(curves.rate_area(search)),
        formats.significant(search.chosen.scale),
    ]


def _budget_cells(table: Table, row: Row) -> list[str]:
    budget, baseline = table.budgets[row], table.baselines.get(row)
    ratios = budget.relative_to(table.budgets[baseline]) if baseline and baseline is not row else [None] * 4
    suffixes = [f" ({formats.ratio(ratio)})" if ratio is not None else "" for ratio in ratios]
    counts = zip(budget, suffixes, strict=True)
    return [table.labels[row], *(formats.count(value) + suffix for value, suffix in counts)]


def _table(title: str, names: Sequence[str], lines: Lines) -> list[TextTable]:
    """A table of (rows, their runs); none if nothing was measured."""
    return [TextTable(title, names, *lines)] if lines[0] else []


def _explorer(table: Table) -> Callable[..., list[TextTable]]:
    """A function that makes a table of undeclared comparisons; none without comparisons."""

    def explore(
        title: str, comparisons: Iterable[Comparison], higher: bool = table.higher_is_better
    ) -> list[TextTable]:
        comparisons = list(comparisons)
        rows = verdicts.exploratory(comparisons, higher)
        lines = (rows, [list(comparison.runs) for comparison in comparisons])
        return _table(f"{title} ({EXPLORATORY})", verdicts.EXPLORATORY_HEADER, lines)

    return explore
