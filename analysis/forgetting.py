"""Learning and forgetting: the run's metric, and how much the base model's abilities declined."""

from typing import Any, NamedTuple

from adarank.runs.files import FORGETTING
from analysis import formats, stats
from analysis.load import Run, number, read_measurement
from analysis.rows import Row
from analysis.tables import Lines, Table, lines_per_run
from analysis.verdicts import Comparison, compare_by_key

MEASURES = {"stsb": ("zero-shot STS-B, Spearman", 1.0), "text": ("held-out text, nats per token", -1.0)}
TITLE = "Learned and forgotten, by run"
OVER_SEEDS = "Learned and forgotten, over the seeds: mean and 95% interval"
AGAINST = "Forgetting against LoRA, over the seeds that both have (P(better): forgot less)"


class Forgotten(NamedTuple):
    """measure: its name; before, after: of the base and of the fine-tuned model; lost: how much worse it became."""

    measure: str
    before: float
    after: float
    lost: float


def header(table: Table, first: str = "run") -> tuple[str, ...]:
    """The column names; first: what a line is about."""
    return (first, f"{table.metric}, {table.split}", "measure", "before", "after", "forgotten")


def read(run: Run) -> list[Forgotten]:
    """The measurements in the run's forgetting.json; empty if there is none that can be read."""
    return read_measurement(run, FORGETTING, _parse) or []


def rows(table: Table) -> Lines:
    """A line for `header` of every run and measure."""

    def cells(run: Run, forgotten: Forgotten) -> list[str]:
        before, after, lost = map(formats.metric, (forgotten.before, forgotten.after, forgotten.lost), ("", "", "+"))
        return [formats.metric(run.score[1]), forgotten.measure, before, after, lost]

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
            learned, *values = (
                formats.interval(*stats.mean_interval(column))
                for column in ([run.score[1] for run in measured], before, after, lost)
            )
            lines.append([table.labels[row], learned, measure, *values])
            runs.append(measured)
    return lines, runs


def against_lora(table: Table) -> list[Comparison]:
    """What every tuned row forgot against what its LoRA row forgot, where they have a measured seed in common."""
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


def _by_measure(row: Row) -> dict[str, dict[int, Forgotten]]:
    """{measure: {seed: measurement}} of the row's runs."""
    measures: dict[str, dict[int, Forgotten]] = {}
    for run in row.runs:
        for forgotten in read(run):
            measures.setdefault(forgotten.measure, {})[run.seed] = forgotten
    return measures
