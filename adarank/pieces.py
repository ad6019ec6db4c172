"""How a piece (a score, an allocator, a method's adapter, …) requests arguments from the code that configures it."""

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def needs(*names: str) -> Callable[[F], F]:
    """Declare arguments that the laboratory supplies instead of a setting: `@needs("seed")`.

    A setting of the same name takes precedence if it is given and not null. CONTRIBUTING.md lists the arguments that a
    piece can request.
    """

    def declare(function: F) -> F:
        function.needs = frozenset(names)  # type: ignore[attr-defined]
        return function

    return declare


def needs_of(function: Callable[..., Any]) -> frozenset[str]:
    """The names that `function` declared with `needs`; empty if it declared none."""
    return getattr(function, "needs", frozenset())
