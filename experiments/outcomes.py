"""The outcomes of a study's finished runs, as packed by experiments/pack.py, and the learning rate that the trials
choose."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from adarank.errors import SettingError
from adarank.runs.files import CONFIG, STATUS, SUMMARY, read_object
from adarank.runs.packed import read_records
from experiments.study import Cell, Study, budgets_of, rank_of

STAGES = ("tuning", "seeds")
DIVERGED, FAILED = "diverged", "failed"


class Outcome(NamedTuple):
    """A finished run. dev, value: its metric on dev, which chooses rates, and the metric that is judged (on test if it
    was measured), both with the study's checkpoint; minutes: those of training and evaluation."""

    arm: str
    rate: float
    seed: int
    run: str
    dev: float
    value: float
    metric: str
    higher_is_better: bool
    minutes: float


def outcomes(study: Study, results: Path, stage: str, task: str, method: str) -> list[Outcome]:
    """Every finished run of a method; stage: one of STAGES."""
    return [_outcome(study, method, *run) for run in read_records(results / stage / task / method)]


def _outcome(study: Study, method: str, folder: Path, record: Mapping[str, Any]) -> Outcome:
    config, summary = record["config"], record["summary"]
    metric, last = summary["metric"], study.checkpoint == "last"
    dev, test = (metric["last"], metric.get("test_last")) if last else (metric["best"], metric.get("test"))
    return Outcome(
        arm=summary.get("arm") or _arm_by_rank(study, method, config["rank"]),
        rate=config["train"]["lr"],
        seed=config["seed"],
        run=folder.name,
        dev=dev,
        value=dev if test is None else test,
        metric=metric["name"],
        higher_is_better=metric["higher_is_better"],
        minutes=(summary["time"]["train_s"] + summary["time"]["eval_s"]) / 60,
    )


def _arm_by_rank(study: Study, method: str, rank: int) -> str:
    """The arm of a run so old that it did not record one; the arm without a budget if none of the study's fits."""
    if method not in study.methods:
        return method
    found = [
        cell for cell in (Cell(method, budget) for budget in budgets_of(study, method)) if rank_of(study, cell) == rank
    ]
    return found[0].arm if found else method


def states(folder: Path) -> dict[Path, str]:
    """The state of every run folder in `folder`."""
    return {file.parent: str(read_object(file)[0].get("state")) for file in sorted(folder.glob(f"*/{STATUS}"))}


def diverged(folder: Path) -> list[tuple[str, float]]:
    """(arm, rate) of every run in `folder` whose loss became infinite or NaN."""
    found = []
    for run in (run for run, state in states(folder).items() if state == DIVERGED):
        config = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
        found.append((str(read_object(run / SUMMARY)[0].get("arm")), float(config["train"]["lr"])))
    return found


def choose(trials: Sequence[Outcome], rates: Iterable[float], lost: Sequence[float] = ()) -> dict[str, Any]:
    """The rate with the best mean on dev, the mean of every rate, and whether the best lies at the edge of its grid; a
    grid of one rate has no edge, since its rate was set beforehand.

    lost: the rate of each trial that diverged; such a rate has no mean and is never chosen. Trials of rates outside the
    grid do not count. Raises SettingError if rates differ in their number of trials, or all of them diverged."""
    by_rate = {rate: [trial.dev for trial in trials if trial.rate == rate] for rate in sorted(rates)}
    counts = {rate: len(values) + lost.count(rate) for rate, values in by_rate.items()}
    if len(set(counts.values())) != 1 or not all(counts.values()):
        raise SettingError(f"the trials must try each rate equally often (got {counts})")
    means = {rate: None if rate in lost else sum(values) / len(values) for rate, values in by_rate.items()}
    known = {rate: mean for rate, mean in means.items() if mean is not None}
    if not known:
        raise SettingError(f"at least one rate must have no diverged trials (got {list(means)})")
    best = (max if trials[0].higher_is_better else min)(known, key=lambda rate: known[rate])
    edge = len(means) > 1 and best in (min(means), max(means))
    count = sum(counts.values())
    return {"rate": best, "means": [[r, m] for r, m in means.items()], "at_the_edge": edge, "trials": count}


def extended(grid: Sequence[float], ends: Iterable[str]) -> list[float]:
    """The grid with one more rate at each of `ends` ("low", "high"), at the same ratio as the two rates at that end, to
    three significant digits."""
    rates = sorted(grid)
    low = [rates[0] ** 2 / rates[1]] if "low" in ends else []
    high = [rates[-1] ** 2 / rates[-2]] if "high" in ends else []
    return [*(float(f"{rate:.3g}") for rate in low), *rates, *(float(f"{rate:.3g}") for rate in high)]


def ends(chosen: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """The ends of the grids at which rates were chosen: any of "low" and "high"."""
    tried = [(choice["rate"], [rate for rate, _ in choice["means"]]) for choice in chosen.values()]
    low = {"low" for rate, rates in tried if rate == min(rates)}
    return low | {"high" for rate, rates in tried if rate == max(rates)}
