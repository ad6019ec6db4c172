"""Tables as strings: the terminal, the page and the files for a paper show the same ones."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from analysis import (
    budgets,
    controls,
    delta,
    dynamics,
    foresight,
    forgetting,
    formats,
    probe,
    stats,
    tested,
    trials,
    verdicts,
)
from analysis.across import Across
from analysis.load import Run
from analysis.rows import Row
from analysis.tables import Table, relative_time


class Grid(NamedTuple):
    """A table below a title; runs: of every row those that its numbers come from (the page links them), or nothing."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    runs: Sequence[Sequence[Run]] = ()


def header(table: Table) -> list[str]:
    """The column names; the metric's names the split it comes from, and the checkpoint where there are two."""
    fixed = ["mean rank", "triplets", "trainable", "kept", *_metrics(table), "n", "best dev"]
    fixed += ["last dev"] if table.split == "test" else []
    return ["method", *table.settings, *fixed, "step, ms", "÷ LoRA", "peak, MiB"]


def cells(table: Table, row: Row) -> list[str]:
    """One row, a string for each name in `header`."""
    return [
        row.method,
        *(row.settings.get(key, formats.BLANK) for key in table.settings),
        formats.ranks(row.initial_rank, row.final_rank),
        formats.count(row.triplets),
        formats.count(row.trainable),
        formats.count(row.kept),
        formats.interval(row.mean, row.half_width),
        *([_last_checkpoint(row)] if has_last(table) else []),
        str(len(row.scores)),
        formats.metric(row.best),
        *([formats.metric(row.last)] if table.split == "test" else []),
        formats.significant(row.step_ms),
        formats.ratio(relative_time(row, table.references.get(row))),
        formats.significant(row.peak_mib),
    ]


def main_grid(table: Table) -> Grid:
    return Grid(table.title, header(table), [cells(table, row) for row in table.rows], [row.runs for row in table.rows])


def grids(table: Table) -> list[Grid]:
    """What belongs below the table: the verdicts, the search for learning rates, the budgets counted four ways, what
    the scores are worth."""
    found = []
    if judged := verdicts.verdicts(table):
        metric = _metrics(table)
        found.append(_verdict_grid(f"Against LoRA, over the seeds that both have ({metric[0]})", judged))
        if lasts := verdicts.verdicts(table, last_checkpoint=True):
            found.append(_verdict_grid(f"The same with the last checkpoint ({metric[1]})", lasts))
    if others := tested.names(table):
        title, names = "Also measured on test, at the same checkpoints", ["method", *others]
        found.append(Grid(title, names, tested.rows(table), [row.runs for row in table.rows]))
    if tried := trials.searched(table):
        runs = [[run for row in search.tried.values() for run in row.runs] for search in tried]
        found.append(Grid("Learning-rate trials", trials.HEADER, list(map(trials.cells, tried)), runs))
    rows = [row for row in table.tuned if row.ranks]
    if rows:
        title, names = "The budget, counted four ways", ["method", *budgets.NAMES]
        found.append(Grid(title, names, [_budget_cells(table, row) for row in rows], [row.runs for row in rows]))
    found += _measured(probe.TITLE, probe.HEADER, probe.rows(table))
    found += _measured(foresight.TITLE, foresight.HEADER, foresight.rows(table))
    for of, title in foresight.AGAINST.items():
        if judged := foresight.verdicts(table, of):
            found.append(_verdict_grid(title, judged))
    if judged := controls.verdicts(table):
        found.append(_verdict_grid(controls.TITLE, judged))
    if judged := dynamics.verdicts(table):
        found.append(_verdict_grid(dynamics.TITLE, judged))
    found += _measured(delta.TITLE, delta.HEADER, delta.rows(table))
    found += _measured(forgetting.TITLE, forgetting.header(table), forgetting.rows(table))
    found += _measured(forgetting.OVER_SEEDS, forgetting.header(table, "method"), forgetting.over_seeds(table))
    if judged := forgetting.verdicts(table):
        found.append(_verdict_grid(forgetting.AGAINST, judged))
    return found


def across_grid(found: Across) -> Grid:
    return _verdict_grid(found.title, found.verdicts)


def has_last(table: Table) -> bool:
    """Whether any run was measured on test with its last checkpoint too."""
    return any(row.last_scores for row in table.rows)


def _metrics(table: Table) -> list[str]:
    if not has_last(table):
        return [f"{table.metric}, {'test' if table.split == 'test' else 'last dev'}"]
    return [f"{table.metric}, test, {which} checkpoint" for which in ("best", "last")]


def _last_checkpoint(row: Row) -> str:
    if not row.last_scores:
        return formats.BLANK
    shown = formats.interval(*stats.mean_interval(list(row.last_scores.values())))
    return shown if len(row.last_scores) == len(row.scores) else f"{shown}, n = {len(row.last_scores)}"


def _measured(title: str, names: Sequence[str], found: tuple[list[list[str]], list[list[Run]]]) -> list[Grid]:
    """A table of (rows, their runs), none where nothing was measured."""
    return [Grid(title, names, *found)] if found[0] else []


def _verdict_grid(title: str, judged: Iterable[verdicts.Verdict]) -> Grid:
    judged = list(judged)
    rows, runs = list(map(verdicts.cells, judged)), [verdict.comparison.runs for verdict in judged]
    return Grid(title, verdicts.HEADER, rows, runs)


def _budget_cells(table: Table, row: Row) -> list[str]:
    own, other = table.budgets[row], table.references.get(row)
    ratios = budgets.ratios(own, table.budgets[other]) if other and other is not row else [None] * 4
    shown = [f" ({formats.ratio(ratio)})" if ratio is not None else "" for ratio in ratios]
    return [table.labels[row], *(formats.count(value) + end for value, end in zip(own, shown, strict=True))]
