"""Learning and forgetting: the run's metric, and how much the base model's abilities declined."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from adarank.runs.files import FORGETTING
from analysis import formats, stats, weight_change
from analysis.load import Run, mean, number, read_measurement
from analysis.rows import Row
from analysis.tables import Lines, Table, lines_per_run
from analysis.verdicts import Comparison, compare_by_key

MEASURES = {"stsb": ("zero-shot STS-B, Spearman", 1.0), "text": ("held-out text, nats per token", -1.0)}
TITLE = "Learned and forgotten at the best checkpoint, by run"
NORM = "norm of ΔW"
OVER_SEEDS = "Learned and forgotten at the best checkpoint, over the seeds: mean and 95% interval"
EQUAL_NORM = "Forgetting at the same norm of ΔW: LoRA's is interpolated over its learning rates, for each seed"
AGAINST = "Forgetting against LoRA, over the seeds that both have (P(better): forgot less)"


class Forgotten(NamedTuple):
    """measure: its name; before, after: of the base and of the fine-tuned model; lost: how much worse it became."""

    measure: str
    before: float
    after: float
    lost: float


def header(table: Table, first: str = "run") -> tuple[str, ...]:
    """The column names; first: the name of the first column."""
    return (first, f"{table.metric}, {table.split}", "measure", "before", "after", "forgotten", NORM)


def read(run: Run) -> list[Forgotten]:
    """The measurements in the run's forgetting.json; empty if there is none that can be read."""
    return read_measurement(run, FORGETTING, _parse) or []


def rows(table: Table) -> Lines:
    """A line for `header` for every run and measure."""

    def cells(run: Run, forgotten: Forgotten) -> list[str]:
        before, after, lost = map(formats.metric, (forgotten.before, forgotten.after, forgotten.lost), ("", "", "+"))
        return [formats.metric(run.best_score), forgotten.measure, before, after, lost, formats.significant(norm(run))]

    return lines_per_run(table, lambda run: [cells(run, forgotten) for forgotten in read(run)])


def over_seeds(table: Table) -> Lines:
    """The same for every configuration and measure with several measured runs."""
    lines, runs = [], []
    for row in table.rows:
        for measure, by_seed in _by_measure(row).items():
            if len(by_seed) < 2:
                continue
            measured = [run for run in row.runs if run.seed in by_seed]
            before, after, lost = ([forgotten[i] for forgotten in by_seed.values()] for i in (1, 2, 3))
            learned = [value for run in measured if (value := run.best_score) is not None]
            at_best, *values = (
                formats.interval(*stats.mean_interval(column)) for column in (learned, before, after, lost)
            )
            changed = formats.significant(mean(map(norm, measured)))
            lines.append([table.labels[row], at_best, measure, *values, changed])
            runs.append(measured)
    return lines, runs


def against_lora(table: Table) -> list[Comparison]:
    """Every tuned row's forgetting against that of its LoRA row, if they have a measured seed in common."""
    comparisons = []
    for row in table.tuned:
        if row is (baseline := table.baselines.get(row)) or baseline is None:
            continue
        names, of_baseline = (table.kinds[row], table.kinds[baseline]), _by_measure(baseline)
        for measure, by_seed in _by_measure(row).items():
            ours, theirs = (
                {seed: forgotten.lost for seed, forgotten in values.items()}
                for values in (by_seed, of_baseline.get(measure, {}))
            )
            if both := ours.keys() & theirs.keys():
                runs = [run for each in (row, baseline) for run in each.runs if run.seed in both]
                label = f"{table.labels[row]}, {measure}"
                comparisons.append(compare_by_key(label, table.labels[baseline], names, ours, theirs, runs))
    return comparisons


def _parse(content: Any) -> list[Forgotten]:
    pairs = {key: [number(content[key][when]) for when in ("before", "after")] for key in MEASURES if key in content}
    return [
        Forgotten(MEASURES[key][0], before, after, MEASURES[key][1] * (before - after))
        for key, (before, after) in pairs.items()
        if before is not None and after is not None
    ]


def norm(run: Run) -> float | None:
    """‖ΔW‖ (Frobenius) of all modules in the run's delta.json together; None if there is no such file. The median over
    modules would hide that AdaLoRA changes few modules much."""
    change = weight_change.read(run)
    return None if change is None else math.hypot(*(module.norm for module in change.modules.values()))


def at_equal_norm(table: Table) -> list[Comparison]:
    """Every row's forgetting against that of its LoRA at the same norm of ΔW, at every learning rate of the row.

    LoRA's forgetting for a seed is interpolated linearly over the logarithm of the norm between its learning rates, of
    which it needs two; a norm outside their range makes no pair.
    """
    comparisons = []
    for row in table.rows:
        if (baseline := table.baselines.get(row)) is None or row in (trials := table.trials(baseline)):
            continue
        for measure in _by_measure(row):
            ours, theirs = {}, {}
            curves = _curves(trials, measure)
            for seed, (at, lost) in _changes(row, measure).items():
                points = sorted(curves.get(seed, ()))
                if len(points) > 1 and points[0][0] <= at <= points[-1][0]:
                    norms, losses = zip(*points, strict=True)
                    ours[seed], theirs[seed] = lost, float(np.interp(at, norms, losses))
            if ours:
                runs = [run for run in row.runs if run.seed in ours]
                name = f"{table.kinds[baseline]} at its norm of ΔW"
                comparisons.append(
                    compare_by_key(
                        f"{table.labels[row]}, {measure}", name, (table.kinds[row], name), ours, theirs, runs
                    )
                )
    return comparisons


def _curves(trials: Sequence[Row], measure: str) -> dict[int, list[tuple[float, float]]]:
    """{seed: (log of the norm, forgetting) at every learning rate}."""
    curves: dict[int, list[tuple[float, float]]] = {}
    for row in trials:
        for seed, point in _changes(row, measure).items():
            curves.setdefault(seed, []).append(point)
    return curves


def _changes(row: Row, measure: str) -> dict[int, tuple[float, float]]:
    """{seed: (log of the norm of ΔW, forgetting)} of the row's runs that have both."""
    norms = {run.seed: value for run in row.runs if (value := norm(run))}
    forgotten = _by_measure(row).get(measure, {})
    return {seed: (math.log(norms[seed]), forgotten[seed].lost) for seed in norms.keys() & forgotten.keys()}


def _by_measure(row: Row) -> dict[str, dict[int, Forgotten]]:
    """{measure: {seed: measurement}} of the row's runs."""
    measures: dict[str, dict[int, Forgotten]] = {}
    for run in row.runs:
        for forgotten in read(run):
            measures.setdefault(forgotten.measure, {})[run.seed] = forgotten
    return measures
