"""The errors that users see as one sentence."""

import math
from collections.abc import Callable
from typing import Any


class SettingError(ValueError):
    """A setting cannot be used as given.

    The message is one sentence that names the setting, its value and what would be valid;
    the command line prints it and exits with status 2.
    """


class RunFailed(RuntimeError):
    """A run ended without a result. The message is one sentence; the command line exits with status 1."""


def number(name: str, value: Any, valid: str, fits: Callable[[Any], bool], whole: bool = False, of: str = "") -> Any:
    """`value` as a Python int or float; NumPy and torch scalars are accepted, booleans are not.

    Raises SettingError, "`name` must be `valid` (got `value`)`of`", unless it is a finite number for which `fits` is
    true. With `whole`, floats are refused, too.
    """
    plain = value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value
    kind = int if whole else int | float
    if isinstance(plain, bool) or not isinstance(plain, kind) or not math.isfinite(plain) or not fits(plain):
        raise SettingError(f"{name} must be {valid} (got {value}){of}")
    return plain


def whole_number(name: str, value: Any, least: int = 1, most: int | None = None, of: str = "") -> int:
    """`value` as an int from `least` to `most` (None: no upper limit). Raises SettingError otherwise, as `number` does;
    `of` explains the range in the message."""
    valid = f"a whole number of at least {least}" if most is None else f"a whole number from {least} to {most}"
    fits = lambda n: n >= least and (most is None or n <= most)  # noqa: E731
    return number(name, value, valid, fits, True, of)  # type: ignore[no-any-return]
