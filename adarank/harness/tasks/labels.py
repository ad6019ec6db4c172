"""Labels as written to class indices or to the targets of a regression."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adarank.errors import SettingError

_INTEGER = re.compile(r"[+-]?\d+")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def _number(value: Any) -> int | float | None:
    """The number that a label is or spells, None for a word (`nan` and `inf` are words)."""
    if isinstance(value, str):
        if _INTEGER.fullmatch(value):
            return int(value)
        return float(value) if _NUMBER.fullmatch(value) else None
    return None if isinstance(value, bool) else value


def typed(splits: Mapping[str, Sequence[Any]], words: bool = False) -> dict[str, list[Any]]:
    """Labels of all splits as int where every one is whole, as float where every one is a number, else as str.

    words: all as str, whatever they spell.
    """
    numbers = {split: [_number(value) for value in values] for split, values in splits.items()}
    flat = [number for values in numbers.values() for number in values]
    if words or any(number is None for number in flat):
        return {split: [str(value) for value in values] for split, values in splits.items()}
    kind = float if any(isinstance(number, float) for number in flat) else int
    return {split: [kind(number) for number in values if number is not None] for split, values in numbers.items()}


def classes(source: str, values: Sequence[Any], order: Sequence[str] | None = None) -> list[Any]:
    """The classes in index order: sorted, or in the given order. Raises SettingError where there is only one."""
    seen = set(values)
    if len(seen) < 2:
        raise SettingError(f"{source}: every label is {values[0]!r}; valid: at least two classes")
    return sorted(seen) if order is None else [name for name in order if name in seen]


def indices(source: str, values: Sequence[Any], classes: Sequence[Any]) -> np.ndarray:
    """Class indices, int64 [rows]. Raises SettingError for a label that is no class."""
    index = {value: i for i, value in enumerate(classes)}
    for row, value in enumerate(values, 1):
        if value not in index:
            raise SettingError(
                f"{source}: the label {value!r} (row {row}) does not occur in train; valid: {_few(classes)}"
            )
    return np.array([index[value] for value in values], dtype=np.int64)


def _few(classes: Sequence[Any]) -> str:
    shown = ", ".join(map(str, classes[:10]))
    return shown if len(classes) <= 10 else f"{shown}, … ({len(classes)} in all)"


def targets(source: str, values: Sequence[float]) -> np.ndarray:
    """Targets, float32 [rows]. Raises SettingError for one that float32 cannot hold."""
    with np.errstate(over="ignore"):
        label = np.array(values).astype(np.float32)
    if not np.isfinite(label).all():
        row = int(np.flatnonzero(~np.isfinite(label))[0])
        raise SettingError(f"{source}: the label {values[row]} (row {row + 1}) is too large; valid: finite numbers")
    return label
