"""Which settings tell rows apart: what a table shows of them, and what its rows are called."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from analysis import formats
from analysis.rows import Row

REFERENCE = "lora"  # times and verdicts are relative to this method
HIDDEN = {"seed", "method", "targets", "rank", "init_rank"}  # shown by other columns
HIDDEN |= {  # no effect on the result; a group or one key of it
    "out",
    "force",
    "retry",
    "checkpoint_seconds",
    "tracker",
    "experiment",
    "hydra",
    "device",
    "workers",
    "launcher",
    "allocator.source",  # a path, another one for every seed
}
PIECES = ("adapter", "init", "score", "allocator", "schedule", "penalty", "quantization")  # what a method is made of
TERMS = ("train.", "budget.")  # the terms of a comparison: shown even when they differ only between methods


def visible(row: Row) -> dict[str, str]:
    """The settings of `row` that can decide its result and that no other column shows."""
    return {key: value for key, value in row.settings.items() if not HIDDEN & {key, key.partition(".")[0]}}


def in_order(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Reading order: methods without ranks, LoRA, the others by name; then by rank and settings."""
    return tuple(sorted(rows, key=_order))


def differing(rows: Sequence[Row]) -> tuple[str, ...]:
    """Settings to show: those that vary within a method, and the terms of the comparison where they vary at all."""
    shown = {row: visible(row) for row in rows}
    keys = sorted({key for settings in shown.values() for key in settings})
    methods: dict[str, list[Row]] = {}
    for row in rows:
        methods.setdefault(row.method, []).append(row)

    def varies(key: str, among: Iterable[Row]) -> bool:
        return len(_values(key, among)) > 1

    chosen = [
        key
        for key in keys
        if (key.startswith(TERMS) and varies(key, rows)) or any(varies(key, kin) for kin in methods.values())
    ]
    return tuple(sorted(chosen, key=lambda key: (key != "train.lr", key)))


def labels(rows: Sequence[Row], settings: Sequence[str]) -> dict[Row, str]:
    """A short name for each row: `adalora 12 → 8`, and the `settings` in which it differs from its method's others.

    Rows that are still alike are told apart by their configuration's hash.
    """
    names = {}
    for row, told in _told(rows, settings).items():
        parts = [row.method, *([formats.ranks(row.initial_rank, row.final_rank)] if row.ranks else [])]
        names[row] = ", ".join([" ".join(parts), *told])
    times = Counter(names.values())
    return {row: name if times[name] == 1 else f"{name} ({row.configuration})" for row, name in names.items()}


def kinds(rows: Sequence[Row], settings: Sequence[str]) -> dict[Row, str]:
    """What each row is, whatever its ranks and learning rate: its method and the `settings` of its pieces in which it differs
    from its method's others, `adalora, allocator uniform`."""
    of_pieces = [key for key in settings if key.partition(".")[0] in PIECES]
    return {row: ", ".join([row.method, *told]) for row, told in _told(rows, of_pieces).items()}


def _told(rows: Sequence[Row], settings: Sequence[str]) -> dict[Row, list[str]]:
    """Of every row the settings in which it differs from its method's others."""
    methods: dict[str, list[Row]] = {}
    for row in rows:
        methods.setdefault(row.method, []).append(row)
    told = {
        name: [key for key in settings if len(_values(key, kin) - _implied(key, kin, settings)) > 1]
        for name, kin in methods.items()
    }
    return {
        row: [
            f"{_short(key)} {row.settings.get(key, '?')}"
            for key in told[row.method]
            if key in row.settings or "." not in key
        ]
        for row in rows
    }


def _short(key: str) -> str:
    """train.lr → lr; in full where that alone would mean another setting (allocator.seed)."""
    last = key.rpartition(".")[2]
    return key if last in HIDDEN else last


def _values(key: str, among: Iterable[Row]) -> set[str | None]:
    """What `key` is in these rows. A piece's own setting (allocator.shuffle) counts only where that piece has it: without it,
    the piece says enough."""
    found = {row.settings.get(key) for row in among if row.settings}
    return found - {None} if "." in key else found


def _implied(key: str, among: Sequence[Row], settings: Sequence[str]) -> set[str]:
    """{"null"} for a score or schedule that is absent only with allocators (a map) that never have one: their name tells."""
    if key not in ("score", "schedule") or "allocator" not in settings:
        return set()
    without, others = (
        {row.settings.get("allocator") for row in among if (row.settings.get(key) == "null") is absent}
        for absent in (True, False)
    )
    return set() if without & others else {"null"}


def _order(row: Row) -> tuple[Any, ...]:
    settings = sorted((key, _number_first(value)) for key, value in visible(row).items())
    return (
        bool(row.ranks),
        row.method != REFERENCE,
        row.method,
        row.final_rank or 0.0,
        row.initial_rank or 0.0,
        settings,
    )


def _number_first(value: str) -> tuple[int, float, str]:
    """A sort key that puts 0.002 before 0.01 and numbers before words."""
    found = formats.as_number(value)
    return (1, 0.0, value) if found is None else (0, found, "")
