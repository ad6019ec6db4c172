"""The page's first screen: what was compared, which method is better, how certain that is, what it costs, and where the
rank went. This module produces plain data and sentences; templates/ lays them out."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adarank.runs.modules import rank_grid, short_kind
from analysis import formats, stats
from analysis.claims import Declared
from analysis.load import Run, state_counts
from analysis.plots import inline, style
from analysis.plots.rank_map import has_map
from analysis.rows import Row
from analysis.tables import Table, kind_and_ranks, relative_cost, relative_time
from analysis.verdicts import Family, Verdict, collapse_cells

CARDS = 6  # comparisons with a large card
FILLED = 3  # undecided comparisons get large cards up to this number
LISTED = 16  # further comparisons, one line each; the tables contain the rest
MATRIX_ROWS = 12  # configurations that the table of scores shows at once
MAPS = 6  # rank maps on the first screen
NAMED = 3  # examples in a sentence
SPOKEN = 2  # maps in a sentence
BAND = 0.05  # rates and ratios closer than this count as equal
ORDER = ("better", "equivalent", "undecided", "impossible")
MARKS = {"equivalent": "=", "undecided": "?", "impossible": "×"}
BETTER, WORSE = "▲", "▼"


@dataclass(frozen=True)
class Card:
    """One comparison. place: the number of its section on the page; of, against: the configurations; text: the verdict,
    kind: its kind; difference, interval: as text; details: seeds, learning rates, costs, collapsed runs, one sentence
    each; svg: the axis; runs: the runs behind its numbers."""

    place: int
    task: str
    of: str
    against: str
    kind: str
    text: str
    difference: str
    interval: str
    details: tuple[str, ...]
    svg: str
    runs: tuple[Run, ...]


class Cell(NamedTuple):
    """A configuration on a task. score: the mean; interval: with its half-width; marks: (sign, what it means) of each
    verdict on it; cost: step time and memory."""

    score: str
    interval: str
    marks: tuple[tuple[str, str], ...]
    cost: str


class Matrix(NamedTuple):
    """columns: (number of the section, name of the task); rows: (configuration, parameters kept, one cell or None per
    column, runs)."""

    columns: tuple[tuple[int, str], ...]
    rows: tuple[tuple[str, str, tuple[Cell | None, ...], tuple[Run, ...]], ...]


class RankMap(NamedTuple):
    """Mean final ranks over the seeds. ranks: [kinds, blocks], NaN without a module; agreement: of the seeds' maps."""

    place: int
    label: str
    task: str
    kinds: tuple[str, ...]
    blocks: tuple[str, ...]
    ranks: NDArray[np.float64]
    agreement: stats.Agreement | None
    runs: tuple[Run, ...]


class Drawing(NamedTuple):
    """A map with its caption. names: the names of its rows, as an SVG; repeated: whether the previous map has the same
    names; place, runs: values for the page's filters."""

    caption: str
    names: str
    repeated: bool
    svg: str
    place: int
    runs: tuple[Run, ...]


class Maps(NamedTuple):
    """maps: one per adaptive method and task, on the scale from 0 to `top`; differences: between two of them, the most
    informative first, each on the scale ±top_difference; scale, difference_scale: the colours; across: maps per
    line."""

    maps: tuple[Drawing, ...]
    top: float
    differences: tuple[Drawing, ...]
    top_difference: float
    scale: tuple[str, ...]
    difference_scale: tuple[str, ...]
    across: int


@dataclass(frozen=True)
class Front:
    """The first screen. facts: (name, value); warnings: sentences on the claims; answers: (question, sentences); cards:
    the comparisons with a large card, then those with a line; left: the number of those that only the tables contain;
    ranks: the numbers behind `maps`; seeds: the scores of every seed as SVG if the page has one table, else "".
    """

    facts: tuple[tuple[str, str], ...]
    standing: str
    warnings: tuple[str, ...]
    answers: tuple[tuple[str, str], ...]
    cards: tuple[Card, ...]
    lines: tuple[Card, ...]
    left: int
    matrix: Matrix
    maps: Maps | None
    ranks: tuple[RankMap, ...]
    seeds: str


class Judged(NamedTuple):
    """A verdict with the place of its table (from 1), the table, and the page's names for both configurations."""

    place: int
    table: Table
    task: str
    verdict: Verdict
    of: str
    against: str

    @property
    def ahead(self) -> bool:
        """Whether the first of the two is the better one."""
        return self.verdict.winner == self.verdict.comparison.methods[0]


def front(
    runs: Sequence[Run],
    tables: Sequence[Table],
    family: Family,
    declared: Declared | None,
    edges: Sequence[str] = (),
) -> Front:
    """The first screen for these tables and the verdicts on them. edges: sentences on arms whose learning rate lies at
    the edge of its grid."""
    tasks = short_names(tables)
    names = [row_names(table) for table in tables]
    judged = [
        Judged(place, tables[place - 1], tasks[place - 1], verdict, *_names(verdict, names[place - 1]))
        for place, verdicts in enumerate(family.verdicts, 1)
        for verdict in verdicts
    ]
    maps = rank_maps(tables, tasks, names)
    cards, lines, left = _cards(judged)
    return Front(
        facts=_facts(runs, tables, tasks, declared),
        standing=standing(declared),
        warnings=(*warnings(family, declared), *edges),
        answers=(
            ("Which method is better?", _which_is_better(judged, len(tables))),
            ("How sure is that?", _how_sure(judged, family, tables, tasks)),
            ("What does it cost?", _what_it_costs(judged)),
            ("Where did the rank go?", _where_the_rank_went(maps, len(tables))),
        ),
        cards=cards,
        lines=lines,
        left=left,
        matrix=_matrix(tables, tasks, names, judged),
        maps=_draw_maps(maps),
        ranks=tuple(maps),
        seeds=_seeds(tables[0], names[0]) if len(tables) == 1 else "",
    )


def short_names(tables: Sequence[Table]) -> list[str]:
    """The properties that distinguish each table: the task, and its model, targets, metric or split if those differ."""
    parts = [
        (table.task, table.model, f"targets {table.targets}" * bool(table.targets), table.metric, table.split)
        for table in tables
    ]
    differ = [i == 0 or len(set(values)) > 1 for i, values in enumerate(zip(*parts, strict=True))]
    if len({each[0] for each in parts}) == len(parts):
        differ[1:] = [False] * (len(differ) - 1)
    return [", ".join(part for part, shown in zip(each, differ, strict=True) if shown and part) for each in parts]


def row_names(table: Table) -> dict[Row, str]:
    """A name for each row: kind and ranks if that is unambiguous among the tuned rows, else its label."""
    tuned = set(table.tuned)
    short = {row: kind_and_ranks(table, row) for row in table.rows}
    taken = Counter(short[row] for row in tuned)
    enough = {row for row, name in short.items() if row in tuned and taken[name] == 1}
    return {row: bracketed(name if row in enough else table.labels[row]) for row, name in short.items()}


def bracketed(name: str) -> str:
    """`adalora 12 → 8, allocator uniform` as `adalora 12 → 8 (uniform)`, which is shorter and fits into lists."""
    first, *words = name.split(", ", 1)
    if not words:
        return first
    inside = words[0].replace("allocator ", "").replace(" (", ": ").replace(")", "")
    return f"{first} ({inside})"


def standing(declared: Declared | None) -> str:
    """Whether the comparisons were declared before the runs."""
    if declared is None:
        return "Not declared beforehand: each method against LoRA (or else the first), corrected together."
    return f"Declared {_minute(declared.declared)} by the study {declared.study} (hash {declared.hash[:12]})."


def warnings(family: Family, declared: Declared | None) -> tuple[str, ...]:
    """One sentence per change of the claims after the first run, and one on declared comparisons without runs."""
    lines = []
    if declared is not None:
        replaced = [*(change.declared for change in declared.changes[1:]), declared.declared]
        lines = [
            f"The claims were changed on {_minute(time)}, after {change.runs} run{'s' * (change.runs != 1)}; "
            f"earlier hash {change.hash[:12]}."
            for change, time in zip(declared.changes, replaced, strict=False)
        ]
    missing = [
        f"{claim.contrast.name} on {claim.task}" + (f" at budget {claim.rank}" if claim.rank is not None else "")
        for claim in family.missing
    ]
    if missing:
        lines.append(f"Declared, but without a finished run of both arms: {'; '.join(missing)}.")
    return tuple(lines)


def rank_maps(tables: Sequence[Table], tasks: Sequence[str], names: Sequence[Mapping[Row, str]]) -> list[RankMap]:
    """The map of each adaptive method on each task, at its largest budget; at most MAPS."""
    found = []
    for place, (table, task, of_table) in enumerate(zip(tables, tasks, names, strict=True), 1):
        by_rank = sorted(filter(has_map, table.tuned), key=lambda row: row.final_rank or 0.0)
        largest = {table.kinds[row]: row for row in by_rank}  # the last of a kind stays
        found += [(place, task, of_table[row], row) for row in largest.values()]
    return [_rank_map(*each) for each in found[:MAPS]]


def settings(tables: Sequence[Table], family: Family) -> dict[str, Any]:
    """The data for the page's comparison of two configurations. names: of all configurations; settings: {name: the
    value of each, or None if it has none}, for settings that are not the same everywhere; first: the two to start
    with."""
    rows = [(table, row) for table in tables for row in table.rows]
    tasks = dict(zip(map(id, tables), short_names(tables), strict=True))
    names = [table.labels[row] + f" on {tasks[id(table)]}" * (len(tables) > 1) for table, row in rows]
    each = [
        {"model": table.model, "task": table.task, "method": row.method, "targets": row.targets}
        | {"rank": formats.ranks(row.initial_rank, row.final_rank), "α/r": formats.significant(row.scale)}
        | row.visible
        for table, row in rows
    ]
    keys = dict.fromkeys(key for values in each for key in values)
    columns = {key: [values.get(key) for values in each] for key in keys}
    ordered = [v for of_table in family.verdicts for v in sorted(of_table, key=lambda v: v.p)]
    compared = next((v.comparison.rows for v in ordered if v.comparison.rows is not None), None)
    places = {id(row): i for i, (_, row) in enumerate(rows)}
    return {
        "names": names,
        "settings": {key: values for key, values in columns.items() if len(set(values)) > 1},
        "first": [places[id(row)] for row in compared] if compared else [0, min(1, len(rows) - 1)],
    }


def listed(names: Iterable[str], most: int | None = None) -> str:
    """ "a", "a and b", "a, b and c"; for more than `most` names with the number of the others: "a, b and 3 more"."""
    names = list(dict.fromkeys(names))
    if most is not None and len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _minute(time: str) -> str:
    """An ISO time to the minute: `2026-11-29 06:55`."""
    return time[:16].replace("T", " ")


def _names(verdict: Verdict, names: Mapping[Row, str]) -> tuple[str, str]:
    comparison = verdict.comparison
    if comparison.rows is None:
        return comparison.label, comparison.against
    of, against = (names[row] for row in comparison.rows)
    return of, against


def _facts(
    runs: Sequence[Run], tables: Sequence[Table], tasks: Sequence[str], declared: Declared | None
) -> tuple[tuple[str, str], ...]:
    rows = [row for table in tables for row in table.rows]
    kinds = dict.fromkeys(bracketed(table.kinds[row]) for table in tables for row in table.rows)
    seeds = sorted({len(row.scores) for table in tables for row in table.tuned})
    metrics = [
        f"{listed((table.metric for table in tables if table.split == split), 3)} on {split}"
        for split in dict.fromkeys(table.split for table in tables)
    ]
    checkpoints = {rows[0].runs[0].checkpoint} if any(table.split == "test" for table in tables) else {"last"}
    count = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    planned = f" of {declared.claims.seeds} planned" if declared else ""
    targets = dict.fromkeys(table.targets for table in tables if table.targets)
    facts = [
        ("model", listed(dict.fromkeys(table.model for table in tables), 4)),
        ("targets", listed(targets, 3)),
        ("tasks" if len(tasks) > 1 else "task", listed(dict.fromkeys(table.task for table in tables), 8)),
        ("methods", listed(kinds, 8)),
        ("seeds", count + planned),
        ("judged by", f"{listed(metrics)}, {listed(checkpoints)} checkpoint"),
        ("runs", state_counts(runs)),
    ]
    return tuple((name, value) for name, value in facts if value)


def _cards(judged: Sequence[Judged]) -> tuple[tuple[Card, ...], tuple[Card, ...], int]:
    """Large cards, lines, and the number of remaining comparisons: the decided ones first, then by p."""
    limits: dict[int, float] = {}
    for each in judged:
        ends = [abs(end) for end in each.verdict.interval or (each.verdict.difference or 0.0,)]
        limits[each.place] = max([limits.get(each.place, 0.0), *ends, 1.5 * (each.verdict.margin or 0.0)])
    ordered = sorted(judged, key=lambda each: (ORDER.index(each.verdict.kind), each.verdict.p))
    decided = sum(each.verdict.kind in ORDER[:2] for each in judged)
    large = min(CARDS, max(decided, FILLED))
    cards = [_card(each, limits[each.place] or 1.0) for each in ordered[: large + LISTED]]
    return tuple(cards[:large]), tuple(cards[large:]), len(ordered) - len(cards)


def _card(each: Judged, limit: float) -> Card:
    verdict, rows = each.verdict, each.verdict.comparison.rows
    name = f"{verdict.comparison.name}: " * bool(verdict.comparison.name)
    details = [f"{verdict.pairs} pair{'s' * (verdict.pairs != 1)} of seeds"]
    if verdict.interval is not None:
        details[0] += f", p {_equals(verdict.p)}"
    elif verdict.kind == "better":
        details[0] += ", decided by how many runs learned"
    if rows is not None:
        details += [sentence for sentence in (_rates(*rows), _costs(*rows)) if sentence]
    if cells := collapse_cells(verdict):
        details.append(f"did not learn: {cells[1]} (Fisher's p {cells[2]})")
    return Card(
        place=each.place,
        task=each.task,
        of=name + each.of,
        against=each.against,
        kind=verdict.kind,
        text=verdict.text,
        difference=formats.metric(verdict.difference, "+"),
        interval=formats.span(verdict.interval) if verdict.interval else "(no interval)",
        details=tuple(details),
        svg=inline.axis(verdict.kind, verdict.difference or 0.0, verdict.interval, verdict.margin, limit),
        runs=verdict.comparison.runs,
    )


def _equals(p: float) -> str:
    text = formats.probability(p)
    return text if text.startswith("<") else f"= {text}"


def _rates(row: Row, other: Row) -> str:
    """The learning rates that were used."""
    ours, theirs = (each.settings.get("train.lr") for each in (row, other))
    if ours is None or theirs is None:
        return ""
    return f"learning rate {ours}" if ours == theirs else f"learning rates {ours} and {theirs}"


def _ratios(row: Row, other: Row) -> tuple[float | None, float | None]:
    """Step time and peak memory relative to the other's, or None if they were not measured on the same device."""
    return relative_time(row, other), relative_cost(row, other, attrgetter("peak_mib"))


def _costs(row: Row, other: Row) -> str:
    named = zip(_ratios(row, other), ("step time", "memory"), strict=True)
    return ", ".join(f"{formats.ratio(value)} {name}" for value, name in named if value is not None)


def _which_is_better(judged: Sequence[Judged], tables: int) -> str:
    if not judged:
        return "There is nothing to compare, because no two configurations share seeds."
    won: dict[tuple[str, str], list[str]] = {}
    same: dict[tuple[str, str], list[str]] = {}
    for each in judged:
        if each.verdict.kind == "better":
            pair = (each.of, each.against) if each.ahead else (each.against, each.of)
            won.setdefault(pair, []).append(each.task)
        elif each.verdict.kind == "equivalent":
            same.setdefault((each.of, each.against), []).append(each.task)
    found = [f"{winner} is better than {loser}{_on(tasks, tables)}" for (winner, loser), tasks in won.items()]
    found += [f"{of} and {against} are equivalent{_on(tasks, tables)}" for (of, against), tasks in same.items()]
    decided = sum(map(len, [*won.values(), *same.values()]))
    rest = len(judged) - decided
    if not found:
        return (
            "Not decided: "
            + (f"none of {len(judged)} comparisons shows" if len(judged) > 1 else "the only comparison does not show")
            + " that one method is better."
        )
    text = "; ".join(found[:NAMED]) + (f"; {len(found) - NAMED} more below" if len(found) > NAMED else "") + "."
    return text + (f" Of {len(judged)} comparisons, {rest} {'is' if rest == 1 else 'are'} not decided." if rest else "")


def _on(tasks: Sequence[str], tables: int) -> str:
    return f" on {listed(tasks, NAMED)}" if tables > 1 else ""


def _how_sure(judged: Sequence[Judged], family: Family, tables: Sequence[Table], tasks: Sequence[str]) -> str:
    if not judged:
        return formats.BLANK
    pairs = sorted({each.verdict.pairs for each in judged if each.verdict.interval is not None})
    known = sum(each.verdict.interval is not None for each in judged)
    together = formats.percent(1 - family.alpha)
    whole = "The intervals of each task hold" if family.per_table and len(tables) > 1 else f"All {known} intervals hold"
    if known:
        seeds = f"{pairs[0]} pairs of seeds" if len(pairs) == 1 else f"{pairs[0]} to {pairs[-1]} pairs of seeds"
        intervals = f"{whole} together" if known > 1 else "The interval holds"
        lines = [f"{intervals} with {together} confidence, from {seeds}."]
    else:
        by_count = any(each.verdict.kind == "better" for each in judged)
        lines = [
            "Too few pairs of seeds for an interval"
            + ("; what is decided is how often runs learn." if by_count else ", so nothing is decided.")
        ]
    counts = [[sum(each) for each in zip(*(row.failures for row in table.tuned), strict=True)] for table in tables]
    failed = [
        f"{failures} of {runs} runs" + f" on {task}" * (len(tasks) > 1)
        for (failures, runs), task in zip(counts, tasks, strict=True)
        if failures
    ]
    if failed:
        lines.append(f"{listed(failed, NAMED)} did not learn.")
    of_task = [[assay for assay in assays if assay.shows] for assays in family.assays]
    shows = [task for task, assays in zip(tasks, of_task, strict=True) if assays]
    to_rank = [task for task, assays in zip(tasks, of_task, strict=True) if any(assay.of_rank for assay in assays)]
    silent = [task for task in tasks if task not in shows]
    if to_rank:
        named = f"{listed(to_rank, NAMED)} {'responds' if len(to_rank) == 1 else 'respond'}"
        lines.append(f"By assay, {named if len(tasks) > 1 else 'the task responds'} to rank.")
    if others := [task for task in shows if task not in to_rank]:
        where = _on(others, len(tasks))
        lines.append(f"The positive control shows a difference{where}; that more rank helps was not shown.")
    if silent:
        where = f" on {listed(silent, NAMED)}" if len(tasks) > 1 else ""
        lines.append(
            f"No assay shows a large enough response to rank{where}, so nothing is called "
            f"equivalent{' there' * bool(shows)}."
        )
    open_ = [each.verdict for each in judged if each.verdict.text.startswith("undecided (about")]
    more = sorted(verdict.more for verdict in open_ if verdict.more)
    if more:
        span = f"{more[0]:,}" if more[0] == more[-1] else f"{more[0]:,} to {more[-1]:,}"
        lines.append(f"Deciding the rest would take about {span} more seeds.")
    return " ".join(lines)


def _what_it_costs(judged: Sequence[Judged]) -> str:
    """For each pair of kinds, the step time and memory of one relative to the other's, over tasks and budgets."""
    ratios: dict[tuple[str, str], list[tuple[float | None, float | None]]] = {}
    for each in judged:
        if (rows := each.verdict.comparison.rows) is not None:
            against, of = (bracketed(each.table.kinds[row]) for row in rows[::-1])
            ratios.setdefault((against, of), []).append(_ratios(*rows))
    measured: dict[str, list[str]] = {}
    for (against, of), costs in ratios.items():
        time, memory = map(_range, zip(*costs, strict=True))
        if time or memory:
            measured.setdefault(against, []).append(f"{of} {' and '.join(filter(None, (time, memory)))}")
    if not measured:
        return "Not comparable: no two configurations were measured on the same device." if judged else formats.BLANK
    against, parts = next(iter(measured.items()))
    more = sum(map(len, measured.values())) - len(parts[:NAMED])
    return f"Step time and memory relative to {against}: {'; '.join(parts[:NAMED])}" + (
        f"; {more} more comparison{'s' * (more > 1)} in the table." if more else "."
    )


def _range(values: Iterable[float | None]) -> str:
    known = sorted(value for value in values if value is not None)
    if not known:
        return ""
    if known[-1] - known[0] < BAND:
        return formats.ratio(known[len(known) // 2])
    return f"{known[0]:.2f} to {formats.ratio(known[-1])}"


def _where_the_rank_went(maps: Sequence[RankMap], tables: int) -> str:
    if not maps:
        return "No method chose the ranks of its modules."
    parts = []
    for i, each in enumerate(maps[:SPOKEN]):
        means = [float(np.nanmean(line)) for line in each.ranks]
        kinds = [each.kinds[means.index(mean)] for mean in (max(means), min(means))]
        ranks = [formats.rank(round(mean, 1)) for mean in (max(means), min(means))]
        who = "" if i and each.label == maps[i - 1].label else f"{each.label} gives "
        on = f" on {each.task}" * (tables > 1)
        parts.append(f"{who}most to {kinds[0]} and least to {kinds[1]}{on} (mean ranks {listed(ranks)})")
    text = "; ".join(parts) + (f"; {len(maps) - SPOKEN} more below." if len(maps) > SPOKEN else ".")
    known = [each.agreement for each in maps if each.agreement is not None]
    if known:
        least, most = min(a.value for a in known), max(a.value for a in known)
        value = f"{least:.2f}" if most - least < BAND else f"{least:.2f} to {most:.2f}"
        text += f" Seeds agree at ρ = {value} (chance: at most {max(a.high for a in known):.2f})."
    return text


def _matrix(
    tables: Sequence[Table], tasks: Sequence[str], names: Sequence[Mapping[Row, str]], judged: Sequence[Judged]
) -> Matrix:
    marks: dict[Row, list[tuple[str, str]]] = {}
    for each in judged:
        if each.verdict.comparison.rows is not None:
            marks.setdefault(each.verdict.comparison.rows[0], []).append(_mark(each))
    by_name: dict[str, dict[int, Row]] = {}
    for place, (table, of_table) in enumerate(zip(tables, names, strict=True)):
        tuned = set(table.tuned)
        chosen = [row for row in table.rows if row in tuned or row in marks]
        for row in chosen if len(chosen) <= MATRIX_ROWS else table.best_first(chosen):
            by_name.setdefault(of_table[row], {})[place] = row
    rows = []
    for name, by_place in by_name.items():
        cells = [
            _cell(table, by_place[place], tuple(marks.get(by_place[place], ()))) if place in by_place else None
            for place, table in enumerate(tables)
        ]
        runs = tuple(run for row in by_place.values() for run in row.runs)
        kept = next(iter(by_place.values())).kept
        rows.append((name, formats.BLANK if kept is None else formats.short_count(kept), tuple(cells), runs))
    if len(rows) > MATRIX_ROWS:  # those that are shown at once
        decided = {BETTER, WORSE, MARKS["equivalent"]}
        rows.sort(key=lambda row: not any(sign in decided for cell in row[2] if cell for sign, _ in cell.marks))
    return Matrix(tuple(enumerate(tasks, 1)), tuple(rows))


def _mark(each: Judged) -> tuple[str, str]:
    if each.verdict.kind != "better":
        return MARKS[each.verdict.kind], f"{each.verdict.text}, against {each.against}"
    return (BETTER, f"better than {each.against}") if each.ahead else (WORSE, f"worse than {each.against}")


def _cell(table: Table, row: Row, marks: tuple[tuple[str, str], ...]) -> Cell:
    """Costs relative to the row's LoRA, absolute for LoRA itself and if there is none."""
    baseline = table.baselines.get(row)
    if baseline is None or baseline is row:
        costs = [f"{formats.significant(row.step_ms)} ms" * bool(row.step_ms)]
        costs.append(f"{formats.significant(row.peak_mib)} MiB" * bool(row.peak_mib))
    else:
        costs = [formats.ratio(ratio) * (ratio is not None) for ratio in _ratios(row, baseline)]
    return Cell(
        formats.metric(row.mean), formats.interval(row.mean, row.half_width), marks, ", ".join(filter(None, costs))
    )


def _seeds(table: Table, names: Mapping[Row, str]) -> str:
    rows = table.best_first(table.tuned)[:MATRIX_ROWS]
    colours = style.distinct_styles(table, rows)
    drawn = [(names[row], list(row.scores.values()), colours[row]["color"]) for row in rows]
    return inline.seeds(drawn, f"{table.metric} on {table.split} of every seed, by method")


def _rank_map(place: int, task: str, label: str, row: Row) -> RankMap:
    blocks, kinds, grid = rank_grid(row.ranks)
    finals = [run.summary["rank"]["final"] for run in row.runs]
    maps = [[float(final.get(module, 0)) for module in row.ranks] for final in finals]
    agreement = stats.agreement(maps, np.random.default_rng(0))
    return RankMap(place, label, task, tuple(_short(kinds)), tuple(blocks), grid.T, agreement, row.runs)


def _short(kinds: Sequence[str]) -> list[str]:
    """As much of each kind's name as distinguishes it from the others, without "dense" if the rest suffices."""
    short = [short_kind(kind, kinds) for kind in kinds]
    bare = [name.removesuffix(".dense") for name in short]
    return bare if len(set(bare)) == len(bare) else short


def _draw_maps(maps: Sequence[RankMap]) -> Maps | None:
    if not maps:
        return None
    top = max(float(np.nanmax(each.ranks)) for each in maps)
    pairs = sorted(_pairs(maps), key=lambda pair: _telling(*pair))
    most = max((float(np.nanmax(np.abs(one.ranks - other.ranks))) for one, other in pairs), default=0.0)
    alone = len(maps) == 1
    drawn = [
        Drawing(
            _caption(each, maps),
            inline.row_names(each.kinds, len(each.blocks), alone),
            i > 0 and each.kinds == maps[i - 1].kinds,
            inline.rank_cells(
                each.ranks,
                (0.0, top),
                "cividis",
                f"Final ranks, kinds of modules by blocks: {_full(each)}",
                large=alone,
            ),
            each.place,
            each.runs,
        )
        for i, each in enumerate(maps)
    ]
    differences = [
        Drawing(
            f"{_caption(one, maps)} − {_caption(other, maps)}",
            drawn[maps.index(one)].names,
            one.kinds == maps[-1].kinds,
            inline.rank_cells(
                one.ranks - other.ranks, (-most, most), "PuOr", f"Rank of {_full(one)} minus {_full(other)}", digits=0
            ),
            one.place,
            (*one.runs, *other.runs),
        )
        for one, other in pairs
    ]
    scale, difference_scale = (tuple(colour for colour, _ in inline.levels(palette)) for palette in ("cividis", "PuOr"))
    across = 4 if max(len(each.blocks) for each in maps) <= 6 else 3
    return Maps(tuple(drawn), top, tuple(differences), most, scale, difference_scale, across)


def _full(each: RankMap) -> str:
    return f"{each.label} on {each.task}"


def _pairs(maps: Sequence[RankMap]) -> list[tuple[RankMap, RankMap]]:
    """All pairs of maps over the same modules."""
    return [
        (one, other)
        for i, one in enumerate(maps)
        for other in maps[i + 1 :]
        if (one.kinds, one.blocks) == (other.kinds, other.blocks)
    ]


def _telling(one: RankMap, other: RankMap) -> tuple[bool, bool]:
    """A sort key: two methods on one task come first, then one method on two tasks; equal budgets before others."""
    return one.task != other.task, abs(float(np.nanmean(one.ranks) - np.nanmean(other.ranks))) > 0.1


def _caption(each: RankMap, maps: Sequence[RankMap]) -> str:
    """The method, the task, or both, whichever distinguishes the map from the others."""
    parts = [
        value
        for value, values in ((each.label, {m.label for m in maps}), (each.task, {m.task for m in maps}))
        if len(values) > 1
    ]
    return ", ".join(parts) or each.label
