"""The results of RankBench: one row per case, ratios over paired seeds, and the Markdown tables.

A difference counts only beyond MARGIN, which was declared before the committed grid ran: a ratio of two losses is
"better" if its whole 95 % interval (Student's t over the paired seeds' log ratios) lies below 1 / MARGIN, "worse" if it
lies above MARGIN, "equal" if it lies between the two, and "undecided" otherwise. Intervals are per cell and not
corrected for the number of cells.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from adarank.errors import SettingError
from analysis import stats
from analysis.export import markdown
from analysis.format_table import TextTable
from analysis.formats import BLANK
from experiments.rankbench.measure import ORACLE, UNIFORM

MARGIN, LEVEL = 1.1, 0.05
RATIOS = ("÷ own control", "÷ uniform LoRA", "÷ planted map", "÷ own map")
Cell = Mapping[str, Any]


class Ratio(NamedTuple):
    """The geometric mean ratio of losses over paired seeds; below 1, the first is better."""

    mean: float
    interval: tuple[float, float] | None
    verdict: str

    def __str__(self) -> str:
        ends = "" if self.interval is None else " [{}, {}]".format(*map(_short, self.interval))
        return f"{_short(self.mean)}{ends}"


class Row(NamedTuple):
    """The means over seeds of one case. budgeted: whether it keeps as many triplets as uniform LoRA; kept: triplets at
    the end; share: the share of these in planted modules; distance: of the map from the planted one, Σ|rᵢ − planted
    rankᵢ| ÷ Σ(rᵢ + planted rankᵢ), 0 if they are the same and 1 if they share nothing; loss: on test, ÷ the untrained
    base's; regret: loss minus the smallest possible one at the budget (linear base); ratios: of the loss to that of the
    same method with the same rank everywhere, of uniform LoRA, of LoRA with the planted map, and of LoRA with the
    case's own final map (None for a map that was never retrained)."""

    case: str
    rank: int
    seeds: int
    budgeted: bool
    kept: float
    share: float
    distance: float
    spearman: float | None
    loss: float
    regret: float | None
    control: Ratio | None
    uniform: Ratio | None
    oracle: Ratio | None
    own_map: Ratio | None


def losses(cell: Cell | None, of: str = "loss") -> dict[str, float]:
    """{seed: loss}; NaN if a run diverged."""
    rows = {} if cell is None else cell["seeds"]
    return {seed: math.nan if row[of] is None else row[of] for seed, row in rows.items() if of in row}


def compare(ours: Mapping[str, float], others: Mapping[str, float]) -> Ratio | None:
    """The ratio over the seeds that both have; None if there are none."""
    logs = [math.log(ours[seed] / others[seed]) for seed in ours if ours[seed] > 0 and others.get(seed, 0.0) > 0]
    if not logs:
        return None
    estimate = stats.paired(logs)
    found = stats.interval(estimate, LEVEL)
    ends = None if found is None else (_exp(found[0]), _exp(found[1]))
    return Ratio(_exp(estimate.mean), ends, _verdict(ends))


def _verdict(ends: tuple[float, float] | None) -> str:
    if ends is None:
        return "undecided"
    low, high = ends
    if high < 1 / MARGIN or low > MARGIN:
        return "better" if high < 1 else "worse"
    return "equal" if low >= 1 / MARGIN and high <= MARGIN else "undecided"


def own_map(cells: Mapping[str, Cell], case: str) -> dict[str, float]:
    """{seed: loss of LoRA with the case's final map}; if the map is uniform, that of uniform LoRA. Seeds whose map was
    not retrained are omitted."""
    uniform = losses(cells.get(UNIFORM))
    flat = {s for s, row in cells[case]["seeds"].items() if len(set(row["ranks"])) == 1 and cells[case]["budgeted"]}
    return {seed: uniform[seed] for seed in flat & uniform.keys()} | losses(cells[case], "map_loss")


def control_of(case: str) -> str:
    """The name of the same case with the same rank everywhere."""
    return f"{case}, allocator=uniform"


def rows(setting: Mapping[str, Any], rank: int) -> list[Row]:
    """A row for every case of a setting's record at a mean rank, with the smallest loss first; a case that needed
    another mean rank is compared with the references at that rank."""
    found = []
    for case, cell in setting["cells"].get(str(rank), {}).items():
        beside = setting["cells"].get(str(cell["rank"] if cell["budgeted"] else rank), {})
        found.append(_row(setting, case, cell, beside, rank))
    return sorted(found, key=lambda row: (math.isnan(row.loss), row.loss))


def _row(setting: Mapping[str, Any], case: str, cell: Cell, beside: Mapping[str, Cell], rank: int) -> Row:
    ours, seeds = losses(cell), list(cell["seeds"])
    maps = [cell["seeds"][seed]["ranks"] for seed in seeds]
    truths = [setting["planted"][seed] for seed in seeds]
    kept = [sum(ranks) for ranks in maps]
    inside = [sum(r for r, p in zip(m, t, strict=True) if p) for m, t in zip(maps, truths, strict=True)]
    apart = [sum(abs(r - p) for r, p in zip(m, t, strict=True)) for m, t in zip(maps, truths, strict=True)]
    agree = [stats.spearman(m, t) for m, t in zip(maps, truths, strict=True)]
    used = cell["rank"] if cell["budgeted"] else rank
    loss = _mean(ours.values())
    bound = setting.get("bounds", {}).get(str(used)) if cell["budgeted"] else None
    return Row(
        case,
        used,
        len(seeds),
        cell["budgeted"],
        _mean(kept),
        _mean(i / k if k else 0.0 for i, k in zip(inside, kept, strict=True)),
        _mean(a / (k + sum(t)) for a, k, t in zip(apart, kept, truths, strict=True)),
        None if None in agree else _mean(a for a in agree if a is not None),
        loss,
        None if bound is None else loss - bound[0],
        compare(ours, losses(beside.get(control_of(case)))),
        compare(ours, losses(beside.get(UNIFORM))) if case != UNIFORM else None,
        compare(ours, losses(beside.get(ORACLE))) if case != ORACLE else None,
        compare(ours, own_map({**beside, case: cell}, case)) if losses(cell, "map_loss") else None,
    )


def rows_of(record: Mapping[str, Any], name: str, rank: int) -> list[Row]:
    """`rows` of a named setting; empty if none of it was measured."""
    return rows(record["settings"][name], rank) if name in record["settings"] else []


def table(record: Mapping[str, Any], name: str, rank: int) -> str:
    """The Markdown table of a setting at a mean rank."""
    setting, found = record["settings"][name], rows_of(record, name, rank)
    exact = any(row.regret is not None for row in found)
    header = ["case", "triplets", "in planted modules", "distance", "loss", *RATIOS]
    lines = []
    for row in found:
        cells = [row.case, f"{row.kept:.3g}", f"{row.share:.2f}", f"{row.distance:.2f}", _short(row.loss)]
        cells += [_short(row.regret) if row.regret is not None else BLANK] if exact else []
        ratios = (row.control, row.uniform, row.oracle, row.own_map)
        lines.append([*cells, *(_marked(ratio, row.budgeted) for ratio in ratios)])
    if exact:
        header.insert(5, "above the bound")
    most = max((row.seeds for row in found), default=0)
    title = f"{name}: {rank * len(setting['modules'])} triplets, {sum(setting['planted']['0'])} planted, {most} seed"
    return markdown([TextTable(title + "s" * (most != 1), header, lines)])


def summary(record: Mapping[str, Any], names: Sequence[str], case: str) -> str:
    """The Markdown table of one case over settings and budgets: where its triplets lie, and all ratios."""
    lines = []
    for name in names:
        setting = record["settings"].get(name, {"cells": {}})
        for rank in sorted(map(int, setting["cells"])):
            row = next((row for row in rows(setting, rank) if row.case == case), None)
            if row is None:
                continue
            even = next((row for row in rows(setting, rank) if row.case == UNIFORM), None)
            apart = f"{row.distance:.2f} ({even.distance:.2f})" if even else f"{row.distance:.2f}"
            ratios = (row.control, row.uniform, row.oracle, row.own_map)
            cells = [name, f"{rank * len(setting['modules'])}", f"{row.share:.2f}", apart, _short(row.loss)]
            lines.append([*cells, *(_marked(ratio, row.budgeted) for ratio in ratios)])
    header = ["setting", "triplets", "in planted modules", "distance (uniform's)", "loss", *RATIOS]
    return markdown([TextTable(f"{case} in every setting, at every budget", header, lines)])


def _marked(ratio: Ratio | None, decides: bool = True) -> str:
    """The ratio, in bold if it is beyond the margin and `decides`, that is, at equal budgets."""
    if ratio is None:
        return BLANK
    return f"**{ratio}**" if decides and ratio.verdict in ("better", "worse") else str(ratio)


def _short(value: float) -> str:
    """Two significant digits from 0.001 to 1000, otherwise a power of ten."""
    if math.isnan(value):
        return "diverged"
    if value == 0 or 1e-3 <= abs(value) < 1000:
        return f"{value:.2g}" if abs(value) < 10 else f"{value:.0f}"
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")


def _mean(values: Iterable[float]) -> float:
    held: Sequence[float] = list(values)
    return sum(held) / len(held) if held else math.nan


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))


def check(record: Any, scales: Mapping[str, Any]) -> None:
    """Raise SettingError unless a file holds cells of runs of this size."""
    if not isinstance(record, dict) or record.get("benchmark") != "rankbench":
        raise SettingError("--json must be a file that this program wrote, or a new one")
    if record["scales"] != scales:
        raise SettingError(
            "--json must hold runs of the same steps, rows and learning rates; choose another file (its own are "
            f"{record['scales']})"
        )
