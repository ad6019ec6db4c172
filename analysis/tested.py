"""What else was measured on test, beside the metric that the table is about."""

from analysis import formats, stats
from analysis.files import number
from analysis.rows import Row
from analysis.tables import Table


def names(table: Table) -> list[str]:
    """The other metrics of any of the table's runs, in the order they were recorded in."""
    found = [name for row in table.rows for run in row.runs for name in run.summary.get("test") or {}]
    return [name for name in dict.fromkeys(found) if name != table.metric]


def rows(table: Table) -> list[list[str]]:
    """A line a configuration, a cell for each of `names`."""
    return [[table.labels[row], *(_cell(row, name) for name in names(table))] for row in table.rows]


def _cell(row: Row, name: str) -> str:
    """The mean over the seeds; where a seed has none, why."""
    values = [number((run.summary.get("test") or {}).get(name)) for run in row.runs]
    known = [value for value in values if value is not None]
    if len(known) == len(values):
        return formats.interval(*stats.mean_interval(known))
    reasons = {(run.summary.get("not_computed") or {}).get(name) for run in row.runs} - {None}
    return f"not computed ({'; '.join(sorted(map(str, reasons)))})" if reasons else formats.BLANK
