"""What pruning by each score costs, compared with the unpruned model, with the oracle's order and with a random one:
`adarank probe RUN --pruning` measures it.

All losses are those of dev. Every run counts once.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from statistics import fmean
from typing import Any, NamedTuple

from adarank.runs.files import PRUNING
from analysis import formats, stats
from analysis.load import Run, finite, number, read_measurement
from analysis.rows import Row
from analysis.tables import Lines, Table

ORACLE, RANDOM, UNPRUNED = "oracle", "random", "unpruned"
TITLE = (
    "What pruning costs: all triplets ordered by each score and pruned at once; dev loss above that of the unpruned "
    "model, of the oracle order (regret) and of a random order, mean and 95% interval over the runs"
)
HEADER = ("method", "triplets kept", "steps of retraining", "order", "loss above the unpruned model",
          "above the oracle order (regret)", "above a random order", "metric", "runs")  # fmt: skip


class State(NamedTuple):
    """The dev loss and metric of one model; None if it was not measured or its retraining diverged."""

    loss: float | None
    metric: float | None


class Pruning(NamedTuple):
    """states: {(order, triplets kept, steps of retraining): state}; triplets: those of the unpruned model."""

    states: dict[tuple[str, int, int], State]
    triplets: int


class Cost(NamedTuple):
    """The dev loss of an order in one run, minus that of the unpruned model, of the oracle's order and of a random
    one, after the same steps of retraining and, for the orders, at the same size; None if one of the two is missing."""

    above: float | None
    regret: float | None
    above_random: float | None
    metric: float | None


Key = tuple[int, int, str]  # triplets kept, steps of retraining, order


def read(run: Run) -> Pruning | None:
    """The run's pruning.json; None if there is none that can be read."""
    return read_measurement(run, PRUNING, _parse)


def costs(pruning: Pruning) -> dict[Key, Cost]:
    """The cost of every pruned state."""
    states = pruning.states
    return {
        (kept, steps, order): Cost(
            _minus(state, states.get((UNPRUNED, pruning.triplets, steps))),
            _minus(state, states.get((ORACLE, kept, steps))),
            _minus(state, states.get((RANDOM, kept, steps))),
            state.metric,
        )
        for (order, kept, steps), state in pruning.states.items()
        if order != UNPRUNED
    }


def by_state(row: Row) -> dict[Key, dict[int, Cost]]:
    """{state: {seed: cost}} of the row's measured runs, by decreasing number of triplets, then by steps of retraining,
    then by cost; an order that diverged comes last."""
    found: dict[Key, dict[int, Cost]] = defaultdict(dict)
    for run in row.runs:
        if (pruning := read(run)) is not None:
            for key, cost in costs(pruning).items():
                found[key][run.seed] = cost

    def place(key: Key) -> tuple[int, int, float]:
        return -key[0], key[1], _mean(cost.above for cost in found[key].values())

    return {key: found[key] for key in sorted(found, key=place)}


def rows(table: Table) -> Lines:
    """A line for HEADER per size, number of further steps and order, of every row with measured runs."""
    lines, runs = [], []
    for row in table.rows:
        for (kept, steps, order), by_seed in by_state(row).items():
            values = map(_interval, zip(*by_seed.values(), strict=True))
            lines.append([table.labels[row], str(kept), str(steps), order, *values, _count(by_seed.values())])
            runs.append([run for run in row.runs if run.seed in by_seed])
    return lines, runs


def curves(found: Mapping[Key, Mapping[int, Cost]], steps: int) -> dict[str, dict[int, float]]:
    """{order: {triplets kept, ascending: mean loss above the unpruned model}} from the result of `by_state`, after
    `steps` steps of retraining."""
    means: dict[str, dict[int, float]] = defaultdict(dict)
    for kept, after, order in sorted(found):
        values = [cost.above for cost in found[kept, after, order].values() if cost.above is not None]
        if after == steps and values:
            means[order][kept] = fmean(values)
    return dict(means)


def _minus(state: State, reference: State | None) -> float | None:
    if reference is None or state.loss is None or reference.loss is None:
        return None
    return state.loss - reference.loss


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return fmean(known) if known else float("inf")


def _count(found: Collection[Cost]) -> str:
    """How many runs each mean of a line has, such as "8", or "7 to 8" where a retraining diverged."""
    counts = [sum(value is not None for value in column) for column in zip(*found, strict=True)]
    return f"{max(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _interval(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return formats.interval(*stats.mean_interval(known)) if known else formats.BLANK


def _parse(content: Any) -> Pruning:
    triplets, steps = int(content["triplets"]), int(content["steps"])
    states = {}
    for state in content["states"]:
        order, kept = str(state["order"]), int(state["triplets"])
        states[order, kept, 0] = State(finite(state["loss"]), finite(state["metric"]))
        if steps:
            states[order, kept, steps] = State(number(state["loss_after"]), number(state["metric_after"]))
    if (UNPRUNED, triplets, 0) not in states:
        raise ValueError("the unpruned model was not measured")
    return Pruning(states, triplets)
