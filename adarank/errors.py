"""The errors that reach a user as one sentence."""

from numbers import Integral
from typing import Any


class SettingError(ValueError):
    """A setting cannot be used as given.

    The message is one sentence that names the setting, its value and what would be valid;
    the command line prints it and exits with status 2.
    """


class RunFailed(RuntimeError):
    """A run ended without a result. The message is one sentence; the command line exits with status 1."""


def whole_number(name: str, value: Any, least: int = 1, most: int | None = None, of: str = "") -> int:
    """`value` as an int; NumPy's integers are accepted, booleans are not. `of` explains the range in the message.

    Raises SettingError where `value` is not a whole number from `least` to `most` (None: without an upper end).
    """
    number = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None
    if number is None or number < least or (most is not None and number > most):
        valid = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise SettingError(f"{name} must be a whole number {valid} (got {value}){of}")
    return number
