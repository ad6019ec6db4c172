"""What was forgotten for what was learned: the run's metric beside the fall of what its base could do before."""

import json
from typing import NamedTuple

from analysis import formats
from analysis.files import number
from analysis.load import Run
from analysis.tables import Table

MEASURES = {"stsb": ("zero-shot STS-B, Spearman", 1.0), "text": ("held-out text, nats per token", -1.0)}


class Forgotten(NamedTuple):
    """measure: its name; before, after: of the base and of the fine-tuned model; lost: how much worse it became."""

    measure: str
    before: float
    after: float
    lost: float


def header(table: Table) -> tuple[str, ...]:
    return ("run", f"{table.metric}, {table.split}", "measure", "before", "after", "forgotten")


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


def rows(table: Table) -> list[list[str]]:
    """One row of strings a run and measure, for `header`; none where no run of the table was measured."""
    found = []
    for row in table.rows:
        for run in row.runs:
            for one in read(run):
                learned = formats.metric(run.score[1])
                values = (formats.metric(one.before), formats.metric(one.after), formats.metric(one.lost, "+"))
                found.append([f"{table.labels[row]}, seed {run.seed}", learned, one.measure, *values])
    return found
