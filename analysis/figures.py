"""Every figure of a table with its caption, in the order of the page: a new one is one more `yield` in `figures`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from analysis.plots import (
    agreement,
    budget,
    forest,
    intruders,
    learning_curves,
    learning_rates,
    orthogonality,
    pareto,
    rank_map,
    scores,
    similarity,
    spectrum,
    trajectories,
)
from analysis.tables import Table
from analysis.verdicts import MARGIN, unit_scale, verdicts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LISTED = 60  # configurations that a figure with a line for each can hold
Records = Mapping[str, Sequence[Mapping[str, Any]]]  # {run name: the records of one of its files}


def figures(table: Table, metrics: Records, allocations: Records) -> Iterator[tuple[str, str, "Figure | None"]]:
    """Name, caption and figure, None where there is nothing to draw.

    metrics, allocations: of the runs of `table.shown`, and of its adaptive rows.
    """
    rows = table.shown
    adaptive = [row for row in rows if row.adaptive]
    chosen = _chosen(table)
    tuned = " Of trials of a learning rate the one that is best on dev." if len(table.tuned) < len(table.rows) else ""
    listed = table.tuned if len(table.tuned) <= LISTED else rows
    named = {table.labels[row] for row in listed}
    cut = tuned if len(table.tuned) <= LISTED else chosen
    margin = MARGIN if unit_scale(table) else None
    yield (
        "forest",
        "Every configuration against LoRA: mean difference over common seeds and its 95% BCa interval"
        + (f"; the band is ±{margin:g}." if margin else ".")
        + cut,
        forest.draw([v for v in verdicts(table) if v.comparison.label in named], table.metric, margin),
    )
    yield (
        "learning_curves",
        f"Learning curves: {table.metric} on dev and training loss against the step, mean over seeds"
        + ("; thin: each seed." if len(rows) <= learning_curves.FEW_SEEDS else ".")
        + chosen,
        learning_curves.draw(table, rows, metrics),
    )
    for name, cost in pareto.COSTS.items():
        yield (
            name,
            f"What {name} buys: {table.metric} on {table.split} against it, every seed and their mean, with its 95% "
            f"t interval where that fits the frame. The front: what nothing beats at its cost.{tuned}",
            pareto.draw(table, cost),
        )
    yield (
        "learning_rates",
        f"Learning rates: best {table.metric} on dev over each method's grid, the chosen rate ringed.",
        learning_rates.draw(table),
    )
    yield (
        "budget",
        f"How the budget fell: mean rank per module after each allocation, of the first seed with records.{chosen}",
        budget.draw(table, adaptive, allocations),
    )
    yield (
        "agreement",
        "Whether the seeds agree on where the rank goes: correlation of their final maps, and its chance level." + cut,
        agreement.draw(table, [row for row in listed if row.adaptive]),
    )
    yield (
        "trajectories",
        f"Rank trajectories: every module's rank from creation to the end, of the first seed with records.{chosen}",
        trajectories.draw(table, adaptive, allocations),
    )
    yield (
        "scores",
        "Scores at the last allocation, of the first seed with records. Thin: smallest to largest of a module; thick: "
        f"the middle half; mark: median.{chosen}",
        scores.draw(table, adaptive, allocations),
    )
    yield (
        "orthogonality",
        "Whether the factors stay orthonormal: ‖AAᵀ − I‖ against the step, mean over all P and Q and the seeds."
        + chosen,
        orthogonality.draw(table, rows, metrics),
    )
    for row in adaptive:
        yield (
            f"rank_map_{row.configuration}",
            f"Where the rank went: final rank of every target module of {table.labels[row]}, mean over seeds.",
            rank_map.draw(row, table.labels[row]),
        )
    yield (
        "spectrum",
        "Singular values of ΔW: median over modules and seeds, the middle half shaded.",
        spectrum.draw(table),
    )
    yield (
        "similarity",
        "Whether two runs changed the weights in the same directions: φ(i, j) of their leading i and j singular "
        "vectors of ΔW (1: one subspace lies in the other), and what random directions would share.",
        similarity.draw(table),
    )
    yield (
        "intruders",
        "Intruder dimensions: leading left singular vectors of W + ΔW that are unlike every one of W's.",
        intruders.draw(table),
    )


def _chosen(table: Table) -> str:
    """The sentence of a caption that says which rows a figure of few shows, empty where it shows all."""
    rows = table.shown
    if len(rows) == len(table.rows):
        return ""
    words = " Of every kind only the configuration that is best on dev."
    if len(set(table.kinds.values())) > len(rows):
        words += f" LoRA and the {len(rows) - 1} best on dev of the others."
    return words
