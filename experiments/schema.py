"""The schema of a study's YAML file: what its parts may hold, checked by tables of {part: kind}."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from adarank.errors import SettingError


class Kind(NamedTuple):
    """valid: the words for its values in a message; fits: whether a value is one of them."""

    valid: str
    fits: Callable[[Any], bool]


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _mapping(of: str, fits: Callable[[Mapping[str, Any]], bool] = lambda _: True) -> Kind:
    named = lambda value: isinstance(value, Mapping) and all(isinstance(name, str) for name in value)  # noqa: E731
    return Kind(f"a mapping of names to {of}", lambda value: named(value) and fits(value))


def _distinct(of: str, fits: Callable[[Any], bool]) -> Kind:
    def distinct(values: Any) -> bool:
        listed = isinstance(values, list | tuple) and bool(values)
        return listed and all(map(fits, values)) and len(set(values)) == len(values)

    return Kind(f"a list of distinct {of}", distinct)


def one_of(*words: str) -> Kind:
    return Kind(" or ".join(words), lambda value: value in words)


def whole(least: int) -> Kind:
    return Kind(f"a whole number of at least {least}", lambda value: _is_whole(value, least))


def wholes(least: int) -> Kind:
    return _distinct(f"whole numbers of at least {least}", lambda value: _is_whole(value, least))


ANY = Kind("anything", lambda _: True)  # checked elsewhere
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("text", lambda value: isinstance(value, str))
TEXTS = _distinct("names", TEXT.fits)
POSITIVE = Kind("a positive number", _is_positive)
RATES = _distinct("positive numbers, in which 1e-4 is written 1.0e-4", _is_positive)  # YAML takes 1e-4 for text
SETTINGS = _mapping("values")
PARTS = _mapping("parts", bool)


def check(where: str, content: Any, required: Mapping[str, Kind], optional: Mapping[str, Kind], of: str = "") -> None:
    """Raise SettingError unless `content` has all parts in `required`, no others than those in `optional`, and each is
    of its kind. where: what has the parts, in a message; of: what precedes the name of a part."""
    given = set(content) if isinstance(content, Mapping) else set()
    if wrong := (given - required.keys() - optional.keys()) | (required.keys() - given):
        parts = f"must have the part{'s' * (len(required) > 1)} {', '.join(sorted(required))}, and " if required else ""
        named = f"{', '.join(sorted(map(str, wrong)))} missing or unknown" if given else "no parts"
        raise SettingError(f"{where} {parts}may have {', '.join(sorted(optional))} (got {named})")
    for part, value in content.items():
        kind = {**required, **optional}[part]
        if not kind.fits(value):
            raise SettingError(f"{of}{part} must be {kind.valid} (got {value})")
