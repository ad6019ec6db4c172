"""Tables as strings, the same on the terminal, on the page and in the files for a paper."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from analysis import fairness, forgetting, formats, rank_maps, score_fidelity, stats, verdicts, weight_change
from analysis.load import Run, number
from analysis.rows import Row
from analysis.tables import Lines, Search, Table, relative_time, searches

TRIALS_HEADER = ("method", "trials", "seeds per trial", "rates tried", "chosen", "best dev", "at the edge", "α/r")


class TextTable(NamedTuple):
    """A table with a title; runs: for every row the runs that its numbers come from, which the page links."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    runs: Sequence[Sequence[Run]] = ()


def format_table(table: Table) -> TextTable:
    """The main table: one row per configuration."""
    rows = [row_cells(table, row) for row in table.rows]
    return TextTable(table.title, header(table), rows, [row.runs for row in table.rows])


def further_tables(table: Table) -> list[TextTable]:
    """The tables below the main one: verdicts, further test metrics, learning-rate trials, the budget counted four
    ways, measurements by experiments/probe.py, comparisons with controls."""
    metric, runs = _metric_columns(table), [row.runs for row in table.rows]
    result = _verdict_table(f"Against LoRA, over the seeds that both have ({metric[0]})", verdicts.against_lora(table))
    if result:
        last = verdicts.against_lora(table, last_checkpoint=True)
        result += _verdict_table(f"The same with the last checkpoint ({metric[-1]})", last)
    tested = [name for row in table.rows for run in row.runs for name in run.summary.get("test") or {}]
    if names := [name for name in dict.fromkeys(tested) if name != table.metric]:
        lines = [[table.labels[row], *(_further_metric(row, name) for name in names)] for row in table.rows]
        result.append(TextTable("Other test metrics, at the same checkpoints", ["method", *names], lines, runs))
    tried = searches(table)
    if any(len(search.tried) > 1 for search in tried):
        of_search = [[run for row in search.tried.values() for run in row.runs] for search in tried]
        result.append(TextTable("Learning-rate trials", TRIALS_HEADER, list(map(_trial_cells, tried)), of_search))
    if rows := [row for row in table.tuned if row.ranks]:
        lines, names = [_budget_cells(table, row) for row in rows], ["method", *fairness.BUDGETS]
        result.append(TextTable("The budget, counted four ways", names, lines, [row.runs for row in rows]))
    result += _table(score_fidelity.TITLE, score_fidelity.HEADER, score_fidelity.rows(table))
    result += _table(score_fidelity.SEEDS_TITLE, score_fidelity.SEEDS_HEADER, score_fidelity.over_seeds(table))
    for aspect, title in score_fidelity.AGAINST.items():
        result += _verdict_table(title, score_fidelity.against_pruning_score(table, aspect))
    result += _verdict_table(verdicts.UNIFORM_TITLE, verdicts.against_uniform(table))
    result += _verdict_table(rank_maps.TITLE, rank_maps.map_or_dynamics(table))
    result += _table(weight_change.TITLE, weight_change.HEADER, weight_change.rows(table))
    result += _table(forgetting.TITLE, forgetting.header(table), forgetting.rows(table))
    result += _table(forgetting.OVER_SEEDS, forgetting.header(table, "method"), forgetting.over_seeds(table))
    return result + _verdict_table(forgetting.AGAINST, forgetting.against_lora(table))


def across_tables(tables: Iterable[Table]) -> list[TextTable]:
    """The verdicts over all tasks that share a model and targets."""
    return [table for over in verdicts.across_tasks(tables) for table in _verdict_table(over.title, over.verdicts)]


def header(table: Table) -> list[str]:
    """The column names of the main table; the metric's names its split, and the checkpoint where there are two."""
    columns = ["mean rank", "triplets", "trainable", "kept", *_metric_columns(table), "n", "best dev"]
    columns += ["last dev"] if table.split == "test" else []
    return ["method", *table.settings, *columns, "step, ms", "÷ LoRA", "peak, MiB"]


def row_cells(table: Table, row: Row) -> list[str]:
    """One row of the main table, a string for each name in `header`."""
    last = formats.BLANK
    if row.last_scores:
        few = f", n = {len(row.last_scores)}" if len(row.last_scores) < len(row.scores) else ""
        last = formats.interval(*stats.mean_interval(list(row.last_scores.values()))) + few
    return [
        row.method,
        *(row.visible.get(key, formats.BLANK) for key in table.settings),
        formats.ranks(row.initial_rank, row.final_rank),
        formats.count(row.triplets),
        formats.count(row.trainable),
        formats.count(row.kept),
        formats.interval(row.mean, row.half_width),
        *([last] if _has_last(table) else []),
        str(len(row.scores)),
        formats.metric(row.best),
        *([formats.metric(row.last)] if table.split == "test" else []),
        formats.significant(row.step_ms),
        formats.ratio(relative_time(row, table.baselines.get(row))),
        formats.significant(row.peak_mib),
    ]


def _has_last(table: Table) -> bool:
    """Whether any run was measured on test with its last checkpoint, too."""
    return any(row.last_scores for row in table.rows)


def _metric_columns(table: Table) -> list[str]:
    if not _has_last(table):
        return [f"{table.metric}, {'test' if table.split == 'test' else 'last dev'}"]
    return [f"{table.metric}, test, {which} checkpoint" for which in ("best", "last")]


def _further_metric(row: Row, name: str) -> str:
    """The mean over the seeds, or the reason why a seed has none."""
    values = [number((run.summary.get("test") or {}).get(name)) for run in row.runs]
    known = [value for value in values if value is not None]
    if len(known) == len(values):
        return formats.interval(*stats.mean_interval(known))
    reasons = {(run.summary.get("not_computed") or {}).get(name) for run in row.runs} - {None}
    return f"not computed ({'; '.join(sorted(map(str, reasons)))})" if reasons else formats.BLANK


def _trial_cells(search: Search) -> list[str]:
    """One search, a string for each name in TRIALS_HEADER."""
    seeds = sorted({len(row.scores) for row in search.tried.values()})
    chosen = next(rate for rate, row in search.tried.items() if row is search.chosen)
    return [
        search.name,
        str(len(search.tried)),
        str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}",
        ", ".join(f"{rate:g}" for rate in search.tried),
        f"{chosen:g}",
        formats.metric(search.chosen.best),
        "yes" if search.at_edge else formats.BLANK if len(search.tried) == 1 else "no",
        formats.significant(search.chosen.scale),
    ]


def _budget_cells(table: Table, row: Row) -> list[str]:
    budget, baseline = table.budgets[row], table.baselines.get(row)
    ratios = budget.relative_to(table.budgets[baseline]) if baseline and baseline is not row else [None] * 4
    suffixes = [f" ({formats.ratio(ratio)})" if ratio is not None else "" for ratio in ratios]
    counts = zip(budget, suffixes, strict=True)
    return [table.labels[row], *(formats.count(value) + suffix for value, suffix in counts)]


def _table(title: str, names: Sequence[str], lines: Lines) -> list[TextTable]:
    """A table of (rows, their runs); none where nothing was measured."""
    return [TextTable(title, names, *lines)] if lines[0] else []


def _verdict_table(title: str, judged: Sequence[verdicts.Verdict]) -> list[TextTable]:
    rows = list(map(verdicts.verdict_cells, judged))
    return _table(title, verdicts.HEADER, (rows, [list(verdict.comparison.runs) for verdict in judged]))
