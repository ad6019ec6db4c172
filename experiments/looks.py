"""Judges a study's claims while its seeds run: the result of each look, the arms still needed, and the record.

analysis/stats/looks.py has the statistics, experiments/protocol.py --looks runs the seeds.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adarank.errors import SettingError
from adarank.runs.files import read_object, write_json
from analysis import claims, stats
from analysis.claims import ASSAY
from experiments.outcomes import Outcome, outcomes
from experiments.study import Study, cells, tuned_as

ASSAY_MARGINS = 3  # a margin is at most a third of the assay's difference


class Pair(NamedTuple):
    """One difference to judge on a task: a claim or the assay; of, against: arms."""

    name: str
    of: str
    against: str
    margin: float
    level: float


def pairs(study: Study, task: str) -> list[Pair]:
    """Every claim on a task at its share of alpha, and the assay, outside the family, at alpha and three margins; none
    without claims on the task."""
    asked = study.claims
    if asked is None or task not in asked.margins:
        return []
    arms = [cell.arm for cell in cells(study)]
    each = [claim for claim in asked.each if claim.task == task]
    named = [Pair(c.contrast.name, *c.arms(arms), c.margin, asked.level(task)) for c in each]
    return [*named, Pair(ASSAY, asked.assay.of, asked.assay.against, ASSAY_MARGINS * asked.margins[task], asked.alpha)]


def needed(study: Study, asked: Sequence[Pair]) -> set[str]:
    """The arms of the pairs, and those that provide their rank maps."""
    arms = {arm for pair in asked for arm in (pair.of, pair.against)}
    maps = [cell for cell in cells(study) if cell.arm in arms and "map_of" in study.methods[cell.method]]
    return arms | {cell._replace(method=study.methods[cell.method]["map_of"]).arm for cell in maps}


def judge(
    study: Study, results: Path, task: str, seeds: int, asked: Sequence[Pair], chosen: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The result of the look after the first `seeds` seeds for every pair; differences count in the metric's
    direction."""
    assert study.claims is not None
    arms = {cell.arm: cell for cell in cells(study)}
    rows = []
    for pair in asked:
        ours, theirs = (
            _by_seed(study, results, task, arms[arm].method, arm, chosen[tuned_as(study, arms[arm])]["rate"])
            for arm in (pair.of, pair.against)
        )
        used = study.seeds[:seeds]
        if lost := [seed for seed in used if seed not in ours.keys() & theirs.keys()]:
            raise SettingError(
                f"--results must hold {pair.of} and {pair.against} of every seed (got none of {lost[0]})"
            )
        sign = 1 if ours[used[0]].higher_is_better else -1
        differences = [sign * (ours[seed].value - theirs[seed].value) for seed in used]
        found = stats.looks.judge(differences, study.claims.stages, pair.level, pair.margin)
        about = {"name": pair.name, "of": pair.of, "against": pair.against, "seeds": seeds}
        rows.append({**about, **found._asdict(), "difference": sign * found.difference})
    return rows


def _by_seed(study: Study, results: Path, task: str, method: str, arm: str, rate: float) -> dict[int, Outcome]:
    found = outcomes(study, results, "seeds", task, method)
    return {outcome.seed: outcome for outcome in found if (outcome.arm, outcome.rate) == (arm, rate)}


def goes_on(row: Mapping[str, Any]) -> bool:
    return bool(row["word"] == stats.looks.GO_ON)


def sentence(row: Mapping[str, Any]) -> str:
    """One row of a look as a line."""
    better = {stats.looks.BETTER: row["of"], stats.looks.WORSE: row["against"]}
    said = f"{better[row['word']]} better" if row["word"] in better else row["word"]
    numbers = f"{row['difference']:+.4f}, p = {row['p']:.2g} (level {row['level']:.2g})"
    named = "assay: " if row["name"] == ASSAY else ""
    return f"{named}{row['of']} − {row['against']}: {numbers}: {said}"


def recorded(
    study: Study, results: Path, task: str, seeds: int, chosen: Mapping[str, Any]
) -> list[dict[str, Any]] | None:
    """The rows of an earlier look under the same claims, or None. Raises SettingError if the trials have chosen other
    rates since."""
    looks = _content(study, results)["tasks"].get(task, [])
    look = next((look for look in looks if look["seeds"] == seeds), None)
    if look is None:
        return None
    now = _rates(study, look["arms"], chosen)
    if other := [arm for arm, rate in look.get("rates", {}).items() if now.get(arm) != rate]:
        raise SettingError(
            f"the trials must choose the rates of the looks at {task}, {look['rates'][other[0]]:g} for {other[0]} (got "
            f"{now.get(other[0])}); name other folders with --out and --results"
        )
    found: list[dict[str, Any]] = look["claims"]
    return found


def record(
    study: Study,
    results: Path,
    task: str,
    seeds: int,
    arms: Collection[str],
    rows: Sequence[Mapping[str, Any]],
    chosen: Mapping[str, Any],
) -> None:
    """Add a look to looks.json, which is restarted if the claims have changed."""
    content = _content(study, results)
    look = {"seeds": seeds, "arms": sorted(arms), "rates": _rates(study, arms, chosen), "claims": rows}
    write_json(
        results / claims.LOOKS,
        {**content, "tasks": {**content["tasks"], task: [*content["tasks"].get(task, []), look]}},
    )


def _rates(study: Study, arms: Collection[str], chosen: Mapping[str, Any]) -> dict[str, float]:
    """{arm: its rate}, as the trials have chosen."""
    return {cell.arm: chosen[tuned_as(study, cell)]["rate"] for cell in cells(study) if cell.arm in arms}


def _content(study: Study, results: Path) -> dict[str, Any]:
    assert study.claims is not None
    hashed = claims.digest(study.claims)
    content, fault = read_object(results / claims.LOOKS)
    if fault:
        raise SettingError(f"{results / claims.LOOKS} is damaged ({fault}); delete it to judge the looks again")
    return content if content.get("hash") == hashed else {"hash": hashed, "tasks": {}}
