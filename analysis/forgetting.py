"""What was forgotten for what was learned: the run's metric beside the fall of what its base could do before."""

import json
from typing import NamedTuple

from analysis import formats, stats
from analysis.files import number
from analysis.load import Run
from analysis.pairs import by_key
from analysis.rows import Row
from analysis.tables import Table
from analysis.verdicts import Verdict, judge

MEASURES = {"stsb": ("zero-shot STS-B, Spearman", 1.0), "text": ("held-out text, nats per token", -1.0)}
TITLE = "What was forgotten beside what was learned"
OVER_SEEDS = "What was forgotten beside what was learned, over the seeds: mean and 95% interval"
AGAINST = "Who forgets? Against LoRA, over the seeds that both have (better: forgot less)"


class Forgotten(NamedTuple):
    """measure: its name; before, after: of the base and of the fine-tuned model; lost: how much worse it became."""

    measure: str
    before: float
    after: float
    lost: float


def header(table: Table, of: str = "run") -> tuple[str, ...]:
    """The column names; of: what a row is."""
    return (of, f"{table.metric}, {table.split}", "measure", "before", "after", "forgotten")


def read(run: Run) -> list[Forgotten]:
    """What the run's forgetting.json holds; none where there is no such file to read."""
    try:
        found = json.loads((run.folder / "forgetting.json").read_bytes())
        pairs = {key: (number(found[key]["before"]), number(found[key]["after"])) for key in MEASURES if key in found}
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [
        Forgotten(MEASURES[key][0], before, after, MEASURES[key][1] * (before - after))
        for key, (before, after) in pairs.items()
        if before is not None and after is not None
    ]


def rows(table: Table) -> tuple[list[list[str]], list[list[Run]]]:
    """A row of strings for `header`, and its run, of every run and measure; none where no run of the table was measured."""
    shown, runs = [], []
    for row in table.rows:
        for run in row.runs:
            for one in read(run):
                learned = formats.metric(run.score[1])
                values = (formats.metric(one.before), formats.metric(one.after), formats.metric(one.lost, "+"))
                shown.append([f"{table.labels[row]}, seed {run.seed}", learned, one.measure, *values])
                runs.append([run])
    return shown, runs


def over_seeds(table: Table) -> tuple[list[list[str]], list[list[Run]]]:
    """`rows`, one a configuration and measure with several measured runs, and those runs."""
    shown, runs = [], []
    for row in table.rows:
        for measure, by_seed in _by_measure(row).items():
            if len(by_seed) < 2:
                continue
            measured = [run for run in row.runs if run.seed in by_seed]
            before, after, lost = ([one[i] for one in by_seed.values()] for i in (1, 2, 3))
            learned, *values = (
                formats.interval(*stats.mean_interval(found))
                for found in ([run.score[1] for run in measured], before, after, lost)
            )
            shown.append([table.labels[row], learned, measure, *values])
            runs.append(measured)
    return shown, runs


def verdicts(table: Table) -> list[Verdict]:
    """What every tuned row forgot against what its LoRA row did, on the seeds that both have; a pair at least."""
    comparisons = []
    for row in table.tuned:
        if row is (other := table.references.get(row)) or other is None:
            continue
        theirs = _by_measure(other)
        for measure, by_seed in _by_measure(row).items():
            one, two = ({s: found.lost for s, found in each.items()} for each in (by_seed, theirs.get(measure, {})))
            if both := one.keys() & two.keys():
                label, names = f"{table.labels[row]}, {measure}", (table.kinds[row], table.kinds[other])
                runs = [run for each in (row, other) for run in each.runs if run.seed in both]
                comparisons.append(by_key(label, table.labels[other], names, one, two, runs))
    return judge(comparisons, None, higher_is_better=False)


def _by_measure(row: Row) -> dict[str, dict[int, Forgotten]]:
    found: dict[str, dict[int, Forgotten]] = {}
    for run in row.runs:
        for one in read(run):
            found.setdefault(one.measure, {})[run.seed] = one
    return found
