"""What a row is measured against: the LoRA row most like it."""

from collections.abc import Iterable, Sequence
from functools import partial

from analysis.rows import Row
from analysis.settings import REFERENCE, visible


def references(best_first: Iterable[Row], rows: Sequence[Row]) -> dict[Row, Row]:
    """For each of `rows` the LoRA row that shares its rank and most other settings, the best on dev among equals.

    best_first: the rows from the best on dev down. The learning rate does not count: every method is compared at its
    own. A LoRA row is its own reference; without any the answer is empty.
    """
    candidates = [row for row in best_first if row.method == REFERENCE]
    keys = {key for row in candidates for key in visible(row) if key != "train.lr"}
    keys = {key for key in keys if len({row.settings.get(key) for row in candidates}) > 1}

    def shared(row: Row, candidate: Row) -> tuple[bool, int]:
        same = sum(candidate.settings.get(key) == row.settings.get(key) for key in keys)
        return candidate.asked[:1] == row.asked[:1], same

    if not candidates:
        return {}
    return {  # max keeps the first of equals
        row: row if row.method == REFERENCE else max(candidates, key=partial(shared, row)) for row in rows
    }
