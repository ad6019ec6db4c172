"""Estimates from existing runs how many seeds and minutes a study's claims need: `protocol.py STUDY --plan`."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev, variance
from typing import Any, NamedTuple

from adarank.errors import SettingError
from analysis import claims, stats
from analysis.claims import ASSAY
from experiments.looks import ASSAY_MARGINS, Pair, pairs
from experiments.outcomes import STAGES, Outcome, outcomes
from experiments.study import Study, cells, rates_of, trials, tuned_cell

FILE = "plan.json"
POWER = 0.8
FEWEST = 3  # pairs; with fewer, their spread is unknown


class Spread(NamedTuple):
    """The spread of paired differences. value: their standard deviation (None: unknown); source: the runs behind it;
    paired: whether from paired runs; if not, it is an upper bound if paired runs correlate positively."""

    value: float | None
    source: str
    paired: bool


def plan(study: Study, source: Path, earlier: bool = False) -> dict[str, Any]:
    """The content of plan.json: seeds and minutes of every claim and arm, without seeds for a study that claims nothing
    about its metric. source: results, packed, of this study or, if `earlier`, of another one, whose seeds may differ.
    Raises SettingError without a finished run of one of the study's tasks."""
    known = {task: _by_arm(study, source, task, earlier) for task in study.tasks}
    if not any(any(stages.values()) for stages in known.values()):
        raise SettingError(
            f"--plan must find finished runs of the study's tasks in --results or --from (got {source}); run the "
            "trials, or name the results of an earlier study"
        )
    rows = [row for task in study.tasks for row in _rows(study, task, known[task])] if study.claims else []
    minutes = {task: _minutes(study, known[task]) for task in study.tasks}
    timed = {task: _all_minutes([known[task]]) or _all_minutes(known.values()) for task in study.tasks}
    filled = {
        task: {arm: fmean(timed[task]) if m is None else m for arm, m in arms.items()} for task, arms in minutes.items()
    }
    seeds = {task: sum(arms.values()) * len(study.seeds) for task, arms in filled.items()}
    tuning = {task: sum(_tried(study, task, name, arms) for name in study.methods) for task, arms in filled.items()}
    total = sum(seeds.values()) + sum(tuning.values())
    return {
        "study": study.name,
        "hash": None if study.claims is None else claims.digest(study.claims),
        "source": source.name,
        "seeds": len(study.seeds),
        "measured": study.probe is not None,
        "power": POWER,
        "claims": rows,
        "warnings": [*_margin_warnings(rows), *_time_warnings(minutes)],
        "minutes_per_run": filled,
        "minutes": {"trials": tuning, "seeds": seeds, "total": total},
    }


def _by_arm(study: Study, source: Path, task: str, earlier: bool) -> dict[str, dict[str, list[Outcome]]]:
    """{stage: {arm: its finished runs}} of a task, including the arms that only an earlier study has."""
    found: dict[str, dict[str, list[Outcome]]] = {stage: {} for stage in STAGES}
    for stage in STAGES:
        for folder in sorted(path for path in (source / stage / task).glob("*") if path.is_dir()):
            for outcome in outcomes(study, source, stage, task, folder.name, every_seed=earlier):
                found[stage].setdefault(outcome.arm, []).append(outcome)
    return found


def _rows(study: Study, task: str, known: Mapping[str, Mapping[str, list[Outcome]]]) -> Iterable[dict[str, Any]]:
    assert study.claims is not None
    tuned = {cell.arm: tuned_cell(study, cell).arm for cell in cells(study)}
    for pair in pairs(study, task):
        spread = _spread(pair, known, tuned)
        level = stats.looks.levels(study.claims.stages, pair.level)[-1]
        sd, planned = spread.value, len(study.seeds)
        yield {
            "task": task,
            **pair._asdict(),
            "level": level,
            "spread": sd,
            "source": spread.source,
            "paired": spread.paired,
            "difference": _difference(pair, known, tuned),
            "needed": None if sd is None else stats.pairs_needed(pair.margin, sd, level, POWER),
            "power": None if sd is None else (stats.power(pair.margin / sd, planned, level) if sd else 1.0),
        }


def _at_best(runs: Sequence[Outcome]) -> list[Outcome]:
    """The runs at the rate with the best mean on dev, among the rates that were tried most often."""
    by_rate: dict[float, list[Outcome]] = {}
    for run in runs:
        by_rate.setdefault(run.rate, []).append(run)
    most = max(map(len, by_rate.values()))
    sign = 1 if runs[0].higher_is_better else -1
    return max(
        (tried for tried in by_rate.values() if len(tried) == most), key=lambda t: sign * fmean(r.dev for r in t)
    )


def _spread(pair: Pair, known: Mapping[str, Mapping[str, list[Outcome]]], tuned: Mapping[str, str]) -> Spread:
    """From paired seeds, else paired trials, else √(SD² + SD²) of the trials of both arms, else that of the paired
    seeds of all other arms (the root of the mean square), else √2 · SD of any arm's trials."""
    for stage in reversed(STAGES):
        if (both := _paired(known[stage], pair.of, pair.against)) is not None:
            return Spread(stdev(both), f"{len(both)} pairs of {stage}", True)
    of_arm = {arm: value for arm, runs in known["tuning"].items() if (value := _variance(runs)) is not None}
    mine = [of_arm[arm] for arm in (_tuned(pair.of, tuned, of_arm), _tuned(pair.against, tuned, of_arm)) if arm]
    if mine:
        return Spread(math.sqrt(2 * fmean(mine)), f"unpaired trials of {len(mine)} of its arms", False)
    seeds = known["seeds"]
    if others := [d for two in combinations(seeds, 2) if (d := _paired(seeds, *two)) is not None]:
        return Spread(math.sqrt(fmean(map(variance, others))), f"the seeds of {len(others)} pairs of other arms", True)
    if of_arm:
        return Spread(math.sqrt(2 * fmean(of_arm.values())), "unpaired trials of other arms", False)
    return Spread(None, "no trials of two seeds", False)


def _paired(arms: Mapping[str, Sequence[Outcome]], of: str, against: str) -> list[float] | None:
    """The differences of two arms, each at its best rate, on the seeds of both; None for fewer than FEWEST."""
    if of not in arms or against not in arms:
        return None
    ours, theirs = ({run.seed: run.value for run in _at_best(arms[arm])} for arm in (of, against))
    both = sorted(ours.keys() & theirs.keys())
    return [ours[seed] - theirs[seed] for seed in both] if len(both) >= FEWEST else None


def _tuned(arm: str, tuned: Mapping[str, str], known: Mapping[str, Any]) -> str | None:
    """The arm itself or the one whose rate it takes, whichever has trials."""
    return next((name for name in (arm, tuned[arm]) if name in known), None)


def _variance(runs: Sequence[Outcome]) -> float | None:
    """The variance over seeds at one rate, pooled over the best rate and those next to it; None without two seeds."""
    rates = sorted({run.rate for run in runs})
    best = rates.index(_at_best(runs)[0].rate)
    groups = [[run.value for run in runs if run.rate == rate] for rate in rates[max(0, best - 1) : best + 2]]
    groups = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in groups)
    return sum((len(group) - 1) * variance(group) for group in groups) / freedom if freedom else None


def _difference(pair: Pair, known: Mapping[str, Mapping[str, list[Outcome]]], tuned: Mapping[str, str]) -> float | None:
    """of − against at their best rates, in the metric's direction, from the seeds or else the trials."""
    for stage in reversed(STAGES):
        arms = known[stage]
        if pair.of in arms and pair.against in arms:
            ours, theirs = (_at_best(arms[arm]) for arm in (pair.of, pair.against))
            sign = 1 if ours[0].higher_is_better else -1
            return sign * (fmean(run.value for run in ours) - fmean(run.value for run in theirs))
    return None


def _minutes(study: Study, known: Mapping[str, Mapping[str, list[Outcome]]]) -> dict[str, float | None]:
    """Minutes per run of every arm, from its own runs or those of the arm whose rate it takes."""
    runs: dict[str, list[float]] = {}
    for arms in known.values():
        for arm, found in arms.items():
            runs.setdefault(arm, []).extend(run.minutes for run in found)
    tuned = {cell.arm: tuned_cell(study, cell).arm for cell in cells(study)}
    used = {arm: _tuned(arm, tuned, runs) for arm in tuned}
    return {arm: None if source is None else fmean(runs[source]) for arm, source in used.items()}


def _all_minutes(known: Iterable[Mapping[str, Mapping[str, list[Outcome]]]]) -> list[float]:
    """Minutes of every finished run, whatever its arm."""
    return [run.minutes for stages in known for arms in stages.values() for runs in arms.values() for run in runs]


def _tried(study: Study, task: str, method: str, minutes: Mapping[str, float]) -> float:
    """The minutes of a method's trials, without extensions of its grid."""
    if "rates" not in study.methods[method]:
        return 0.0
    arms = {cell.budget: cell.arm for cell in cells(study) if cell.method == method}
    runs = [minutes[arms[budget]] * len(seeds) for budget, seeds in trials(study, method)]
    return sum(runs) * len(rates_of(study, task, method))


def _margin_warnings(rows: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """Warn unless the margin is at most a third of the assay's difference."""
    for row in (row for row in rows if row["name"] == ASSAY):
        margin, shown = row["margin"] / ASSAY_MARGINS, row["difference"]
        about = f"{row['task']}: the assay, {row['of']} − {row['against']},"
        if shown is None:
            yield f"{about} lacks runs of both arms, so its difference is unknown"
        elif margin > shown / ASSAY_MARGINS:
            yield f"{about} is {shown:+.4f} here; the margin, {margin:g}, must be at most a third of it"


def _time_warnings(minutes: Mapping[str, Mapping[str, float | None]]) -> Iterable[str]:
    for task, arms in minutes.items():
        if untimed := [arm for arm, value in arms.items() if value is None]:
            yield f"{task}: no run tells how long {', '.join(untimed)} takes; the mean of all runs is used"


def text(found: Mapping[str, Any]) -> str:
    """The plan as text for the terminal."""
    lines = ["The study claims nothing about its metric; its minutes:"]
    if found["claims"]:
        lines = [f"Seeds for the margin at {found['power']:.0%} power, {found['seeds']} planned, by {found['source']}:"]
    for row in found["claims"]:
        name = f"{row['task']}, {'assay' if row['name'] == ASSAY else row['name']}: {row['of']} − {row['against']}"
        if row["spread"] is None:
            lines.append(f"{name}: unknown, {row['source']}")
            continue
        needed = "more than 10,000 seeds" if row["needed"] is None else f"{row['needed']} seeds"
        bound = "" if row["paired"] else ": an upper bound"
        per_run = found["minutes_per_run"][row["task"]]
        lines += [
            f"{name}: {needed} for {row['margin']:g} at level {row['level']:.2g}; power {row['power']:.2f} as planned",
            f"    SD of paired differences {row['spread']:.4f} ({row['source']}{bound}); "
            f"{per_run[row['of']] + per_run[row['against']]:.1f} minutes per seed",
        ]
    lines += [f"warning: {warning}" for warning in found["warnings"]]
    minutes = found["minutes"]
    if found["measured"]:
        lines.append("warning: the measurements of the part probe take their own time, which is not counted")
    for task in minutes["seeds"]:
        lines.append(
            f"{task}: {minutes['trials'][task]:.0f} minutes of trials, {minutes['seeds'][task]:.0f} of the comparison"
        )
    return "\n".join([*lines, f"In total {minutes['total']:.0f} minutes, one run at a time."])
