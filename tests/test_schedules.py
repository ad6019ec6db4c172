import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from adarank import SettingError
from adarank.schedules import cubic


def test_the_docstring_s_example():
    assert cubic(432, 288, t_i=100, t_f=300, total=1000, interval=10).budget(400) == 306


@given(
    final=st.integers(1, 300),
    extra=st.integers(0, 300),
    t_i=st.integers(0, 200),
    middle=st.integers(1, 300),
    t_f=st.integers(2, 200),
    interval=st.integers(1, 40),
)
def test_it_starts_and_ends_exactly_and_never_rises(final, extra, t_i, middle, t_f, interval):
    total = t_i + middle + t_f
    schedule = cubic(final + extra, final, t_i, t_f, total, interval)
    budgets = [schedule.budget(t) for t in range(total)]
    assert set(budgets[: t_i + 1]) == {final + extra}
    assert set(budgets[total - t_f :]) == {final}
    assert all(a >= b for a, b in itertools.pairwise(budgets))
    due = [t for t in range(total) if schedule.due(t)]
    assert set(range(total - t_f + 1, total)) <= set(due)
    assert all(t > t_i and (t % interval == 0 or t > total - t_f) for t in due)
    allocations = schedule.allocations()
    assert schedule.budget(allocations[-1]) == final
    assert allocations == [t for t in due if t <= allocations[-1]]


@given(st.integers(2, 400), st.integers(1, 40), st.integers(0, 3))
def test_a_budget_that_would_never_become_final_is_refused(total, interval, t_f):
    assume(t_f < total)
    reached = t_f >= 2 or (t_f == 1 and (total - 1) % interval == 0)
    if reached:
        cubic(8, 4, 0, t_f, total, interval)
    else:
        with pytest.raises(SettingError, match="would never apply the final budget"):
            cubic(8, 4, 0, t_f, total, interval)


def test_a_constant_budget_is_allowed():
    schedule = cubic(8, 8, t_i=0, t_f=0, total=10, interval=100)
    assert {schedule.budget(t) for t in range(10)} == {8}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"initial": 3}, "initial budget of 3 triplets lies below the final one of 4"),
        ({"final": 0}, "final budget of 0 triplets is too small"),
        ({"t_i": -1}, "schedule.t_i=-1 is too small; valid: at least 0"),
        ({"interval": 0}, "schedule.interval=0 is too small; valid: at least 1"),
        ({"t_i": 5, "t_f": 5}, "schedule.t_i=5 plus schedule.t_f=5 leave none of the 10 steps"),
    ],
)
def test_what_cannot_be_is_refused(change, says):
    with pytest.raises(SettingError, match=says):
        cubic(**{"initial": 8, "final": 4, "t_i": 2, "t_f": 3, "total": 10, "interval": 1, **change})
