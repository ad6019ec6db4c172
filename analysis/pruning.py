"""What pruning by each score costs, compared with the oracle's order: `adarank probe RUN --pruning` measures it.

Regret is the dev loss of an order minus that of the oracle at the same number of triplets. Every run counts once.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from operator import attrgetter
from statistics import fmean
from typing import Any, NamedTuple

from adarank.runs.files import PRUNING
from analysis import formats, stats
from analysis.load import Run, finite, number, read_measurement
from analysis.rows import Row
from analysis.tables import Lines, Table

ORACLE, UNPRUNED = "oracle", "unpruned"
TITLE = (
    "What pruning costs: all triplets ordered by each score and pruned at once; dev loss above that of the oracle "
    "order (regret), mean and 95% interval over the runs"
)
HEADER = ("method", "order", "triplets kept", "loss above the unpruned model", "regret", "steps of retraining",
          "regret after retraining", "metric", "metric after retraining", "runs")  # fmt: skip


class State(NamedTuple):
    """One pruned model: dev loss and metric right after pruning and after retraining (None without retraining)."""

    loss: float
    metric: float
    loss_after: float | None
    metric_after: float | None


class Pruning(NamedTuple):
    """states: {(order, triplets kept): state}; triplets: those of the unpruned model; steps: of retraining."""

    states: dict[tuple[str, int], State]
    triplets: int
    steps: int


class Regret(NamedTuple):
    """The regret of an order in one run at one size. above: its loss minus the unpruned model's; now, after: its loss
    minus the oracle's right after pruning and after retraining (None without)."""

    above: float
    now: float
    after: float | None
    state: State


def read(run: Run) -> Pruning | None:
    """The run's pruning.json; None if there is none that can be read."""
    return read_measurement(run, PRUNING, _parse)


def regrets(pruning: Pruning) -> dict[tuple[str, int], Regret]:
    """{(order, triplets kept): regret} for every pruned state whose size the oracle also has."""
    whole, found = pruning.states[UNPRUNED, pruning.triplets], {}
    for (order, kept), state in pruning.states.items():
        if (oracle := pruning.states.get((ORACLE, kept))) is None:
            continue
        after = None
        if state.loss_after is not None and oracle.loss_after is not None:
            after = state.loss_after - oracle.loss_after
        found[order, kept] = Regret(state.loss - whole.loss, state.loss - oracle.loss, after, state)
    return found


def by_state(row: Row) -> dict[tuple[str, int], dict[int, Regret]]:
    """{(order, triplets kept): {seed: regret}} of the row's measured runs, by decreasing number of triplets and
    then increasing regret."""
    found: dict[tuple[str, int], dict[int, Regret]] = defaultdict(dict)
    for run in row.runs:
        if (pruning := read(run)) is not None:
            for key, regret in regrets(pruning).items():
                found[key][run.seed] = regret
    order = sorted(found.items(), key=lambda item: (-item[0][1], fmean(regret.now for regret in item[1].values())))
    return dict(order)


def rows(table: Table) -> Lines:
    """A line for HEADER per order and size of every row with measured runs."""
    lines, runs = [], []
    for row in table.rows:
        steps = {run.seed: pruning.steps for run in row.runs if (pruning := read(run)) is not None}
        for (order, kept), by_seed in by_state(row).items():
            found = list(by_seed.values())
            values = map(attrgetter("above", "now", "after", "state.metric", "state.metric_after"), found)
            above, now, after, metric, metric_after = map(_interval, zip(*values, strict=True))
            trained = ", ".join(map(str, sorted({steps[seed] for seed in by_seed})))
            about = [table.labels[row], order, str(kept), above, now, trained, after, metric, metric_after]
            lines.append([*about, str(len(found))])
            runs.append([run for run in row.runs if run.seed in by_seed])
    return lines, runs


def curves(found: Mapping[tuple[str, int], Mapping[int, Regret]], after: bool) -> dict[str, dict[int, float]]:
    """{order: {triplets kept, ascending: mean regret}} from the result of `by_state`, before or after retraining."""
    means: dict[str, dict[int, float]] = defaultdict(dict)
    for (order, kept), by_seed in sorted(found.items()):
        values = [value for r in by_seed.values() if (value := r.after if after else r.now) is not None]
        if values:
            means[order][kept] = fmean(values)
    return dict(means)


def _interval(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return formats.interval(*stats.mean_interval(known)) if known else formats.BLANK


def _parse(content: Any) -> Pruning:
    states = {
        (str(state["order"]), int(state["triplets"])): State(
            finite(state["loss"]),
            finite(state["metric"]),
            number(state["loss_after"]),
            number(state["metric_after"]),
        )
        for state in content["states"]
    }
    triplets = int(content["triplets"])
    if (UNPRUNED, triplets) not in states:
        raise ValueError("the unpruned model was not measured")
    return Pruning(states, triplets, int(content["steps"]))
