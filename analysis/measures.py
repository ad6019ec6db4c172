"""Claims about the measurements of `adarank probe`, such as forgetting: a separate family, declared and judged like
other claims.

The file `probe_claims.json` has the form of `claims.json`; its `metrics` name one of MEASURES for each task.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from analysis import claims, forgetting, prefixes, verdicts
from analysis.claims import Claim, Declared
from analysis.format_table import VERDICT, TextTable
from analysis.formats import metric, percent, span
from analysis.tables import Table

FILE = "probe_claims.json"
PREFIXES, SVD = "_prefixes", "_svd"  # suffixes of cut runs: first triplets, best approximations of ΔW
Values = dict[str, dict[int, float]]  # {arm or method: {seed: value}}


class Measure(NamedTuple):
    """higher_is_better: None if it depends on the task's metric; values: those of every measured arm; names: the names
    that claims may compare in a study with these arms."""

    title: str
    higher_is_better: bool | None
    values: Callable[[Table], Values]
    names: Callable[[Sequence[str]], list[str]]


class Judged(NamedTuple):
    """The verdicts on the claims of one table, its assay (None if an arm has no values), and the claims without
    a verdict."""

    table: Table
    measure: Measure
    verdicts: list[tuple[Claim, verdicts.Verdict]]
    assay: verdicts.Assay | None
    missing: list[Claim]


def load(folder: Path) -> Declared | None:
    """The claims in a folder's probe_claims.json; None if there is no such file. Raises ClaimsError if it is damaged
    or a task has no measure."""
    declared = claims.load(folder, FILE)
    if declared is not None:
        check(declared.claims)
    return declared


def check(declared: claims.Claims) -> None:
    """Raise ClaimsError unless the claims name a known measure for every task."""
    for task in declared.margins:
        if (name := declared.metrics.get(task)) not in MEASURES:
            raise claims.ClaimsError(f"probe.claims.metrics.{task} must be one of {', '.join(MEASURES)} (got {name})")


def judge(tables: Iterable[Table], declared: Declared) -> list[Judged]:
    """The declared claims on tasks with measured arms. A claim is judged once all planned seeds are measured."""
    found = []
    for table in tables:
        task = verdicts.study_task(table, declared.claims)
        if task is not None:
            found.append(_judge(table, task, declared.claims))
    return found


def text_tables(tables: Iterable[Table], declared: Declared) -> list[TextTable]:
    """One table of verdicts per task; its title states the correction and whether the assay shows a difference."""
    result = []
    for table, measure, judged, assay, missing in judge(tables, declared):
        if not judged:
            continue
        first, together = judged[0][1], percent(1 - declared.claims.alpha)
        family = "this table" if declared.claims.family == "table" else "the family"
        shows = "no assay"
        if assay is not None:
            shows = f"the assay {'shows' if assay.shows else 'does not show'}: {assay.label}"
            shows += f" {metric(assay.estimate.mean, '+')} {span(assay.interval)}"
        title = (
            f"Declared beforehand: {measure.title} ({table.title}; {percent(1 - first.level)} intervals, all of "
            f"{family} hold together in {together}; margin ±{first.margin:g}; {shows}"
            + (f"; not measured yet: {len(missing)})" if missing else ")")
        )
        cells = [verdicts.verdict_cells(verdict) for _, verdict in judged]
        rows = [[f"{claim.name}: {of}", *others] for (claim, _), (of, *others) in zip(judged, cells, strict=True)]
        runs = [verdict.comparison.runs for _, verdict in judged]
        result.append(TextTable(title, verdicts.HEADER, rows, runs, VERDICT))
    return result


def plain(judged: Iterable[Judged]) -> list[dict[str, Any]]:
    """The verdicts in the form of their JSON file."""
    return [
        {
            "task": claim.task,
            "measure": measure.title,
            "name": claim.contrast.name,
            "of": verdict.comparison.label,
            "against": verdict.comparison.against,
            "verdict": verdict.text,
            "difference": verdict.difference,
            "interval": verdict.interval,
            "level": verdict.level,
            "p": verdict.p,
            "pairs": verdict.pairs,
            "margin": verdict.margin,
            "assay": None if assay is None else {"shows": assay.shows, "difference": assay.estimate.mean},
        }
        for _, measure, of_table, assay, _ in judged
        for claim, verdict in of_table
    ]


def _judge(table: Table, task: str, declared: claims.Claims) -> Judged:
    measure = MEASURES[declared.metrics[task]]
    higher = table.higher_is_better if measure.higher_is_better is None else measure.higher_is_better
    values, margin = measure.values(table), declared.margins[task]

    def compare(of: str, against: str) -> verdicts.Comparison:
        runs = [run for arm in (of, against) for row in table.arms.get(arm, ()) for run in row.runs]
        ours = {seed: values[of][seed] for seed in sorted(values[of])}
        return verdicts.compare_by_key(of, against, (of, against), ours, values[against], runs, declared.seeds)

    assay, sides = None, (declared.assay.of, declared.assay.against)
    if all(side in values for side in sides):
        assay = verdicts.assay(compare(*sides), margin, higher)
    found, missing = [], []
    for claim in (claim for claim in declared.each if claim.task == task):
        arms = claim.arms(values.keys())
        if not all(arm in values for arm in arms):
            missing.append(claim)
            continue
        comparison, responds = replace(compare(*arms), name=claim.name), assay is not None and assay.shows
        level = declared.level(task)
        (verdict,) = verdicts.judge([comparison], margin, higher, level, responds, planned=True, alpha=declared.alpha)
        diverged = {seed for arm in arms for row in table.arms.get(arm, ()) for seed in row.diverged}
        measured = comparison.scores.size + len(diverged) >= declared.seeds
        found.append((claim, verdict if measured else verdicts.not_all_run(verdict, declared.seeds)))
    return Judged(table, measure, found, assay, missing)


def _after(name: str) -> Callable[[Table], Values]:
    """The values after training of one measure of forgetting.json."""
    title = forgetting.MEASURES[name][0]

    def values(table: Table) -> Values:
        rows = {arm: table.row_of(arm) for arm in table.arms}
        return _known(
            (arm, {run.seed: one.after for run in row.runs for one in forgetting.read(run) if one.measure == title})
            for arm, row in rows.items()
        )

    return values


def _areas(table: Table) -> Values:
    """AURAC of each method that has runs at several ranks, and of single runs cut to these ranks."""
    by_method: dict[str, dict[float, Any]] = {}
    rows = {arm: table.row_of(arm) for arm in table.arms}
    for arm, row in rows.items():
        method, _, rank = arm.partition("@")
        if rank:
            by_method.setdefault(method, {})[float(rank)] = row
    several = {method: dict(sorted(rows.items())) for method, rows in by_method.items() if len(rows) > 1}
    ranks = set().union(*several.values())
    values = {method: prefixes.tuned_areas(rows) for method, rows in several.items() if rows.keys() == ranks}
    for arm, row in rows.items():
        method = arm.partition("@")[0]
        for name, svd in ((f"{method}{PREFIXES}" if method in several else method, False), (f"{method}{SVD}", True)):
            measured = prefixes.by_seed(row, svd)
            if measured and (not ranks or ranks <= set(next(iter(measured.values())))):
                kept = {seed: {r: s for r, s in of.items() if not ranks or r in ranks} for seed, of in measured.items()}
                values[name] = prefixes.areas(kept)
    return _known(values.items())


def _known(values: Iterable[tuple[str | None, Mapping[int, float]]]) -> Values:
    return {name: dict(by_seed) for name, by_seed in values if name is not None and by_seed}


def _area_names(arms: Sequence[str]) -> list[str]:
    methods = list(dict.fromkeys(arm.partition("@")[0] for arm in arms))
    ranked = [f"{method}{PREFIXES}" for method in methods if method not in arms]
    return [*methods, *ranked, *(f"{method}{SVD}" for method in methods)]


MEASURES = {
    "stsb": Measure("zero-shot STS-B after training, Spearman", True, _after("stsb"), list),
    "text": Measure("held-out text after training, nats per token", False, _after("text"), list),
    "aurac": Measure("AURAC, the mean score over log2 rank", None, _areas, _area_names),
}
