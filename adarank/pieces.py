"""What a piece (a score, an allocator, a method's adapter, …) asks of whoever configures it."""

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def needs(*names: str) -> Callable[[F], F]:
    """Declare arguments that the laboratory supplies and that no setting gives: `@needs("seed")`.

    A setting of the same name that is given and is not null wins. CONTRIBUTING.md lists what can be asked for.
    """

    def declare(function: F) -> F:
        function.needs = frozenset(names)  # type: ignore[attr-defined]
        return function

    return declare


def needs_of(function: Callable[..., Any]) -> frozenset[str]:
    """What `function` declared with `needs`; empty where it declared nothing."""
    return getattr(function, "needs", frozenset())
