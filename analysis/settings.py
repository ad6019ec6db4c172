"""The settings that distinguish rows: which ones a table shows, the names of its rows, and the baseline of each row."""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from analysis import formats
from analysis.rows import HIDDEN, REPLACED_BY_MAP, Row, group

REFERENCE = "lora"  # times and verdicts are relative to this method
PIECES = ("adapter", "init", "score", "allocator", "schedule", "penalty", "quantization")  # the parts of a method
TERMS = ("train.", "budget.")  # the terms of a comparison, shown even if they differ only between methods


def in_order(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Reading order: methods without ranks, LoRA, the others by name; then by rank and settings."""
    return tuple(sorted(rows, key=_order))


def differing(rows: Sequence[Row]) -> tuple[str, ...]:
    """The settings to show: those that vary within a method, and the terms of the comparison if they vary at all."""
    keys = sorted({key for row in rows for key in row.visible})
    methods = list(_by_method(rows).values())

    def varies(key: str) -> bool:
        return any(len(_values(key, same)) > 1 for same in ([rows] if key.startswith(TERMS) else methods))

    return tuple(sorted(filter(varies, keys), key=lambda key: (key != "train.lr", key)))


def labels(rows: Sequence[Row], settings: Sequence[str]) -> dict[Row, str]:
    """A short name for each row: `adalora 12 → 8` and the `settings` in which it differs from its method's other rows.

    Rows with equal names get their configuration's hash appended.
    """
    names = {}
    for row, words in _distinguishing(rows, settings).items():
        name = f"{row.method} {formats.ranks(row.initial_rank, row.final_rank)}" if row.ranks else row.method
        names[row] = ", ".join([name, *words])
    counts = Counter(names.values())
    return {row: name if counts[name] == 1 else f"{name} ({row.configuration})" for row, name in names.items()}


def kinds(rows: Sequence[Row], settings: Sequence[str]) -> dict[Row, str]:
    """The kind of each row, regardless of its ranks and learning rate: its method and those of its pieces' `settings`
    in which it differs from its method's other rows. Examples: `adalora, allocator uniform`; `adalora, retrained
    map`."""
    of_pieces = [key for key in settings if group(key) in PIECES or key.startswith("ranks_")]
    return {row: ", ".join([row.method, *words]) for row, words in _distinguishing(rows, of_pieces).items()}


def baselines(best_first: Iterable[Row], rows: Sequence[Row]) -> dict[Row, Row]:
    """For each of `rows` the LoRA row of its rank, or else of the nearest, that shares most other settings; among
    equals the best on dev.

    best_first: the rows, best dev value first. The learning rate does not count, since every method is compared at its
    own. A method without ranks has the LoRA row of the highest rank, whatever its scores, because choosing a reference
    by its scores would favour a lucky one. A LoRA row is its own baseline; without any LoRA row the result is empty.
    """
    candidates = [row for row in best_first if row.method == REFERENCE]
    keys = {key for row in candidates for key in row.visible if key != "train.lr"}
    keys = {key for key in keys if len({row.settings.get(key) for row in candidates}) > 1}

    def similarity(row: Row, candidate: Row) -> tuple[float, int]:
        shared = sum(candidate.settings.get(key) == row.settings.get(key) for key in keys)
        if not row.ranks:
            return candidate.final_rank or 0.0, shared
        return -abs(_requested(row) - _requested(candidate)), shared

    if not candidates:
        return {}
    return {  # max keeps the first of equals
        row: row if row.method == REFERENCE else max(candidates, key=partial(similarity, row)) for row in rows
    }


def _requested(row: Row) -> float:
    """The final rank in the row's settings; 0 without one."""
    return formats.as_number(next(iter(row.requested_ranks), None)) or 0.0


def _by_method(rows: Iterable[Row]) -> dict[str, list[Row]]:
    methods: dict[str, list[Row]] = {}
    for row in rows:
        methods.setdefault(row.method, []).append(row)
    return methods


def _distinguishing(rows: Sequence[Row], settings: Sequence[str]) -> dict[Row, list[str]]:
    """For each row the settings in which it differs from its method's other rows, in words."""
    named = {
        method: [key for key in settings if len(_values(key, same) - _implied(key, same, settings)) > 1]
        for method, same in _by_method(rows).items()
    }

    def words(key: str, row: Row) -> str:  # `lr 0.01`; the whole key if its last part is ambiguous
        last, value = key.rpartition(".")[2], row.visible.get(key, "?")
        return value if key == "ranks_from" else f"{key if last in HIDDEN else last} {value}"

    return {row: [words(key, row) for key in named[row.method] if _applies(key, row)] for row in rows}


def _applies(key: str, row: Row) -> bool:
    """Whether the setting applies to the row. A setting of a piece (random.seed) or of a rank map applies only if the
    row has that piece; a rank map has no allocator, score or schedule."""
    if key in row.visible:
        return True
    return not ("." in key or key.startswith("ranks_") or (row.is_rank_map and key in REPLACED_BY_MAP))


def _values(key: str, among: Iterable[Row]) -> set[str | None]:
    """The values of `key` in these rows. A rank map differs from rows without one."""
    values = {row.visible.get(key) for row in among if row.settings and _applies(key, row)}
    return values | {None} if key == "ranks_from" else values


def _implied(key: str, among: Sequence[Row], settings: Sequence[str]) -> set[str]:
    """{"null"} for a score or schedule that is absent only with allocators that never have one, which imply it."""
    if key not in ("score", "schedule") or "allocator" not in settings:
        return set()
    without, others = (
        {row.visible.get("allocator") for row in among if (row.visible.get(key) == "null") is absent}
        for absent in (True, False)
    )
    return set() if without & others else {"null"}


def _order(row: Row) -> tuple[Any, ...]:
    numbers = {key: formats.as_number(value) for key, value in row.visible.items()}
    settings = [  # 0.002 before 0.01, and numbers before words
        (key, (1, 0.0, value) if (number := numbers[key]) is None else (0, number, ""))
        for key, value in sorted(row.visible.items())
    ]
    return (
        bool(row.ranks),
        row.method != REFERENCE,
        row.method,
        row.final_rank or 0.0,
        row.initial_rank or 0.0,
        settings,
    )
