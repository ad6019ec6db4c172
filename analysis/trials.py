"""The search for a learning rate: what was tried for each method, on how many seeds, and what it chose."""

from collections.abc import Mapping
from typing import NamedTuple

from analysis import formats
from analysis.rows import Row
from analysis.tables import Table, kind_and_ranks

HEADER = ("method", "trials", "seeds a trial", "rates tried", "chosen", "best dev", "at the edge", "α/r")


class Search(NamedTuple):
    """Of one kind of row and its ranks: tried: {learning rate: row}, in rising order; chosen: the row that is best on dev."""

    name: str
    tried: Mapping[float, Row]
    chosen: Row

    @property
    def at_edge(self) -> bool:
        """Whether the best of several rates is the lowest or the highest: a better one may lie beyond."""
        rates = list(self.tried)
        ends = (self.tried[rates[0]], self.tried[rates[-1]])
        return len(rates) > 1 and self.chosen.best is not None and self.chosen in ends


def searches(table: Table) -> list[Search]:
    """The search of every kind of row and its ranks, one rate or several; of several rows with one rate the best on dev."""
    found: dict[tuple[str, ...], dict[float, Row]] = {(table.kinds[row], *row.asked): {} for row in table.rows}
    for row in table.best_first(table.rows):
        if (rate := formats.as_number(row.settings.get("train.lr"))) is not None:
            found[table.kinds[row], *row.asked].setdefault(rate, row)
    return [_search(table, tried) for tried in found.values() if tried]


def _search(table: Table, tried: Mapping[float, Row]) -> Search:
    """tried: the best on dev first."""
    best = next(iter(tried.values()))
    return Search(kind_and_ranks(table, best), dict(sorted(tried.items())), best)


def searched(table: Table) -> list[Search]:
    """All searches of the table where at least one tried several rates, else none."""
    found = searches(table)
    return found if any(len(search.tried) > 1 for search in found) else []


def cells(search: Search) -> list[str]:
    """One search as strings, one for each name in HEADER."""
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
