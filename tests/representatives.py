"""Which cases of a long parametrisation run by default."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def representatives(cases: Iterable[Any], keep: int | Collection[Any]) -> list[Any]:
    """`cases` for `pytest.mark.parametrize`, all but a few of them marked slow.

    keep: the cases that run in `make test`: the first so many, or those equal to one of a collection. The others run in
    `make test-slow` alone. A case that is a tuple is one of several arguments, as in `parametrize`.
    """
    cases = list(cases)
    kept = cases[:keep] if isinstance(keep, int) else [case for case in cases if case in keep]
    missing = [] if isinstance(keep, int) else [case for case in keep if case not in cases]
    assert not missing, f"{missing} are no cases"
    return [case if case in kept else _slow(case) for case in cases]


def _slow(case: Any) -> Any:
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
