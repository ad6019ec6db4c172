"""The outcomes of a study's finished runs, as packed by experiments/pack.py, and the learning rate that the trials
choose."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from functools import reduce
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import OverrideParseException

from adarank.errors import SettingError
from adarank.harness.config.spec import NEVER, Spec, TrainConfig, identity_default
from adarank.runs.files import CONFIG, STATUS, SUMMARY, read_object
from adarank.runs.packed import read_records
from experiments.study import Cell, Study, budgets_of, cells, rank_of, settings_of

STAGES = ("tuning", "seeds")
DIVERGED, FAILED = "diverged", "failed"
ABSENT = object()  # no value in a run's config
IDLE = {f"train.{f.name}" for f in fields(TrainConfig) if identity_default(f) is NEVER}
IDLE |= {f.name for f in fields(Spec) if identity_default(f) is NEVER} - {"method", "tiny"}  # these two are compared
FREE = {"train.lr", "seed"} | IDLE  # the sweep sets them, or they never change a run


class Outcome(NamedTuple):
    """A finished run. dev, value: its metric on dev, which chooses rates, and the metric that is judged (on test if it
    was measured), both with the study's checkpoint and NaN if unknown; minutes: those of training and evaluation;
    config: its settings."""

    arm: str
    rate: float
    seed: int
    run: str
    dev: float
    value: float
    metric: str
    higher_is_better: bool
    minutes: float
    config: Mapping[str, Any] = {}


class Lost(NamedTuple):
    """A run whose loss became infinite or NaN."""

    arm: str
    rate: float
    seed: int
    config: Mapping[str, Any]


def outcomes(
    study: Study, results: Path, stage: str, task: str, method: str, every_seed: bool = False
) -> list[Outcome]:
    """Every finished run of a method with a seed of the stage, one of STAGES. every_seed: also with other seeds, as an
    earlier study may have."""
    found = [_outcome(study, method, *run) for run in read_records(results / stage / task / method)]
    return [outcome for outcome in found if every_seed or outcome.seed in _seeds(study, stage)]


def _seeds(study: Study, stage: str) -> Sequence[int]:
    return study.tuning if stage == "tuning" else study.seeds


def _outcome(study: Study, method: str, folder: Path, record: Mapping[str, Any]) -> Outcome:
    config, summary = record["config"], record["summary"]
    metric, last = summary["metric"], study.checkpoint == "last"
    dev, test = (metric["last"], metric.get("test_last")) if last else (metric["best"], metric.get("test"))
    return Outcome(
        arm=summary.get("arm") or _arm_by_rank(study, method, config["rank"]),
        rate=config["train"]["lr"],
        seed=config["seed"],
        run=folder.name,
        dev=math.nan if dev is None else dev,
        value=next((value for value in (test, dev) if value is not None), math.nan),
        metric=metric["name"],
        higher_is_better=metric["higher_is_better"],
        minutes=(summary["time"]["train_s"] + summary["time"]["eval_s"]) / 60,
        config=config,
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


def states_of(folder: Path, arm: str, rates: Iterable[float], seeds: Iterable[int]) -> list[str]:
    """The states of the runs in `folder` of an arm, at these rates and with these seeds."""
    asked = set(product([arm], map(float, rates), seeds))
    return [state for run, state in states(folder).items() if _named(run) in asked]


def _named(run: Path) -> tuple[str, float, int] | None:
    """(arm, rate, seed) of a run's folder, None if it has no settings yet."""
    try:
        config = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
        return str(config.get("arm")), float(config["train"]["lr"]), int(config["seed"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError):
        return None


def diverged(study: Study, out: Path, stage: str, task: str, method: str) -> list[Lost]:
    """Every run of a method with a seed of the stage whose loss became infinite or NaN."""
    found = []
    for run in (run for run, state in states(out / stage / task / method).items() if state == DIVERGED):
        config = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
        arm = str(read_object(run / SUMMARY)[0].get("arm"))
        found.append(Lost(arm, float(config["train"]["lr"]), config["seed"], config))
    return [lost for lost in found if lost.seed in _seeds(study, stage)]


def refuse_other_settings(
    study: Study, results: Path, out: Path, tasks: Iterable[str], words: Iterable[str] = ()
) -> None:
    """Raise SettingError if a run that counts was made with other settings than the study has for it now, as far as its
    config tells, or if a study with claims lacks the seed of a run of its comparison. words: further words of every
    run, whose settings take precedence over those of the study."""
    arms = {cell.arm: cell for cell in cells(study)}
    further = _settings_in(words)
    for stage, task, method in product(STAGES, tasks, study.methods):
        made: list[Outcome | Lost] = [*outcomes(study, results, stage, task, method, every_seed=True)]
        if stage == "seeds" and (study.claims or (study.probe and study.probe.claims)):
            other = sorted({run.seed for run in made if run.arm in arms} - set(study.seeds))
            if other:
                raise SettingError(
                    f"seeds must include those of the study's runs, since its claims are about them all (got none of "
                    f"{', '.join(map(str, other))}, which {method} on {task} has); name other folders with --out and "
                    "--results"
                )
        made = [run for run in made if run.seed in _seeds(study, stage)]
        made += diverged(study, out, stage, task, method)
        for run in (run for run in made if run.arm in arms):
            for key, asked in {**settings_of(study, task, arms[run.arm]), **further}.items():
                found = reduce(_part, key.split("."), run.config)
                if key not in FREE and _differ(asked, found):
                    raise SettingError(
                        f"the study must keep the settings of its runs, {key}={found} for {run.arm} on {task} (got "
                        f"{asked}); name other folders with --out and --results"
                    )


def _settings_in(words: Iterable[str]) -> dict[str, Any]:
    """{setting: value} of the words `setting=value` for run.py; those that delete a setting or list several values have
    none. Raises SettingError for a word that Hydra does not read."""
    try:
        overrides = OverridesParser.create().parse_overrides([word for word in words if "=" in word])
    except OverrideParseException as error:
        raise SettingError(f"further words must be settings for experiments/run.py (got {error.override})") from None
    plain = [
        each for each in overrides if not (each.is_delete() or each.is_sweep_override() or each.is_hydra_override())
    ]
    values = {each.key_or_group: each.value() for each in plain}
    return {key: value.text if isinstance(value, QuotedString) else value for key, value in values.items()}


def _part(config: Any, name: str) -> Any:
    return config.get(name, ABSENT) if isinstance(config, Mapping) else ABSENT


def _differ(asked: Any, found: Any) -> bool:
    """Whether two values of a setting differ, as far as their forms can be compared: a config holds a group's choice as
    its parts, a fraction as the steps that it came to and a word or null as the number that it stands for, an absolute
    path may lead to the same data elsewhere, and an older run may lack the setting."""
    if isinstance(asked, str) and isinstance(found, str):
        return not Path(asked).is_absolute() and Path(asked).name != Path(found).name
    if asked is None or found is ABSENT or isinstance(asked, str | Mapping) or isinstance(found, Mapping):
        return False
    if isinstance(asked, list | tuple) and isinstance(found, list | tuple):
        return sorted(map(str, asked)) != sorted(map(str, found))
    of_fraction = isinstance(asked, float) and 0 < asked < 1 and isinstance(found, int)
    return bool(asked != found) and not of_fraction


def choose(trials: Sequence[Outcome], rates: Iterable[float], lost: Sequence[float] = ()) -> dict[str, Any]:
    """The rate with the best mean on dev, the mean of every rate, and whether the best lies at the edge of its grid; a
    grid of one rate has no edge, since its rate was set beforehand.

    lost: the rate of each trial that diverged; such a rate has no mean and is never chosen, nor is one whose metric is
    unknown in a trial. Trials of rates outside the grid do not count. Raises SettingError if rates differ in their
    number of trials, or all of them diverged."""
    lost = [*lost, *(trial.rate for trial in trials if math.isnan(trial.dev))]
    by_rate = {rate: [t.dev for t in trials if t.rate == rate and not math.isnan(t.dev)] for rate in sorted(rates)}
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
