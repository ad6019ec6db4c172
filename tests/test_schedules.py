"""A contract over every schedule in conf/schedule, and each formula in exact arithmetic."""

import inspect
import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import adarank
from adarank import SettingError, schedules
from adarank.harness.config.validate import conf_folder
from adarank.schedules import constant, cosine, cubic, growing, late, linear, one_shot, widening
from tests.conftest import Net
from tests.test_controller import run

NAMES = sorted(p.stem for p in (conf_folder() / "schedule").glob("*.yaml") if p.stem != "none")
RISES, STAYS, FALLS_LATE = {"growing"}, {"constant"}, {"late"}
NUMBERS = {
    "low": st.integers(1, 300),
    "extra": st.integers(0, 300),
    "t_i": st.integers(0, 200),
    "middle": st.integers(1, 300),
    "t_f": st.integers(2, 200),
    "interval": st.integers(1, 40),
}


def built(name, low, extra, t_i, middle, t_f, interval):
    """The schedule, with T, and the steps up to which and from which its budget is said not to move."""
    high, total = low + (extra if name not in STAYS else 0) + (name in FALLS_LATE), t_i + middle + t_f
    initial, final = (low, high) if name in RISES else (high, low)
    settings = {"t_i": t_i, "t_f": t_f, "interval": interval, "t": t_i + middle}
    function = getattr(schedules, name)
    taken = {key: value for key, value in settings.items() if key in inspect.signature(function).parameters}
    schedule = function(initial=initial, final=final, total=total, **taken)
    at_once = "t" in taken or name in FALLS_LATE
    return schedule, total, (t_i + middle - 1 if at_once else t_i), t_i + middle


@pytest.mark.parametrize("name", NAMES)
@given(**NUMBERS)
def test_every_schedule_starts_and_ends_exactly_and_moves_one_way(name, **numbers):
    schedule, total, begin, settled = built(name, **numbers)
    budgets = [schedule.budget(t) for t in range(total)]
    assert all(type(b) is int for b in budgets)
    assert (schedule.total, schedule.settled) == (total, settled)
    assert set(budgets[: begin + 1]) == {schedule.initial}
    assert set(budgets[settled:]) == {schedule.final}
    forth = budgets if name not in RISES else budgets[::-1]
    assert all(a >= b for a, b in itertools.pairwise(forth))


@pytest.mark.parametrize("name", NAMES)
@given(**NUMBERS)
def test_every_schedule_allocates_as_it_says_and_ends_with_the_final_budget(name, **numbers):
    schedule, total, begin, settled = built(name, **numbers)
    due = [t for t in range(total) if schedule.due(t)]
    assert set(range(settled + 1, total)) <= set(due)
    first = -1 if name in FALLS_LATE else begin  # late allocates the initial budget before
    assert all(t > first for t in due)
    if schedule.steps is None:
        assert all(t % schedule.interval == 0 or t > settled for t in due)
    allocations = schedule.allocations()
    assert allocations == [t for t in due if t <= allocations[-1]]
    assert schedule.budget(allocations[-1]) == schedule.final
    assert all(t < settled for t in allocations[:-1])  # the mask of the first allocation from `settled` on is held


@pytest.mark.parametrize("compaction", ["off", "final"])
@pytest.mark.parametrize("name", NAMES)
def test_a_controller_keeps_what_every_schedule_allows(name, compaction):
    torch.manual_seed(0)
    net = Net()
    adapters = adarank.adapt(net, rank=4)
    schedule, total, _, settled = built(
        name, low=12, extra=12 - (name in FALLS_LATE), t_i=3, middle=10, t_f=5, interval=2
    )
    controller = adarank.RankController(
        adapters, score=adarank.scores.adalora(), schedule=schedule, pruned_triplets="frozen", compaction=compaction
    )
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-2)
    controller.attach(optimizer)
    masks, made = [], []
    for t in range(total):
        run(net, controller, optimizer, [t], masks=masks)
        if controller.last_allocation is not None and controller.last_allocation.step == t:
            made.append(t)
            assert controller.last_allocation.kept == schedule.budget(t)
    assert made == schedule.allocations()
    assert sum(adarank.ranks(net).values()) == schedule.final
    assert all(torch.equal(mask, masks[-1]) for mask in masks[settled + 1 :])


SHAPES = {  # how much of the way is left after the part u of the time
    "cubic": (cubic, {}, lambda u: (1 - u) ** 3),
    "linear": (linear, {}, lambda u: 1 - u),
    "cosine": (cosine, {}, lambda u: Fraction((1 + math.cos(math.pi * u)) / 2)),
    "growing": (growing, {}, lambda u: 1 - u),
    "growing cubic": (growing, {"curve": "cubic"}, lambda u: (1 - u) ** 3),
}


@pytest.mark.parametrize("name", SHAPES)
@given(**NUMBERS)
def test_the_budget_follows_its_formula_rounded_down(name, low, extra, t_i, middle, t_f, interval):
    function, more, left = SHAPES[name]
    initial, final = (low, low + extra) if function is growing else (low + extra, low)
    schedule = function(initial, final, t_i, t_f, t_i + middle + t_f, interval, **more)
    for step in range(t_i + 1, t_i + middle):
        exact = final + (initial - final) * left(Fraction(step - t_i, middle))
        slack = Fraction(1, 10**9) if function in (cubic, cosine) else 0  # those two are computed in floats
        assert math.floor(exact - slack) <= schedule.budget(step) <= math.floor(exact + slack)


@pytest.mark.parametrize(
    ("function", "initial", "step", "budget"),
    [(cubic, 432, 400, 306), (linear, 432, 400, 360), (cosine, 432, 300, 396), (growing, 72, 400, 180)],
)
def test_the_docstrings_examples(function, initial, step, budget):
    assert function(initial, 288, t_i=100, t_f=300, total=1000, interval=10).budget(step) == budget
    text = f"{function.__name__}({initial}, 288, t_i=100, t_f=300, total=1000, interval=10).budget({step}) == {budget}"
    assert text in function.__doc__


@pytest.mark.parametrize(("function", "initial"), [(cubic, 8), (linear, 8), (cosine, 8), (growing, 2)])
@given(total=st.integers(2, 400), interval=st.integers(1, 40), t_f=st.integers(0, 3))
def test_a_budget_that_would_never_become_final_is_refused(function, initial, total, interval, t_f):
    assume(t_f < total)
    reached = t_f >= 2 or (t_f == 1 and (total - 1) % interval == 0)
    if reached:
        function(initial, 4, 0, t_f, total, interval)
    else:
        with pytest.raises(SettingError, match="otherwise no allocation applies the final budget of 4"):
            function(initial, 4, 0, t_f, total, interval)


@pytest.mark.parametrize("function", [cubic, linear, cosine, growing, constant])
def test_a_constant_budget_is_allowed(function):
    schedule = function(8, 8, t_i=0, t_f=0, total=10, interval=100)
    assert {schedule.budget(t) for t in range(10)} == {8}


def test_constant_allocates_every_interval_and_then_once_more():
    assert constant(8, 8, t_i=2, t_f=5, total=20, interval=4).allocations() == [4, 8, 12, 16]
    assert constant(8, 8, t_i=0, t_f=0, total=10, interval=3).allocations() == [3, 6, 9]


def test_widening_is_salientlora_s_countdown_of_steps_left():
    """The authors' loop over steps, with the share of the way counted from t_i to the final phase."""
    schedule = widening(90, 24, t_i=20, t_f=30, total=350, interval=5, last_interval=40)
    left, made = 5, []
    for step in range(21, 321):
        window = round(40 + (5 - 40) * (1 - (step - 20) / 300) ** 3)
        left -= 1
        if step < 320:
            assert schedule.budget(step) == int(90 - window / 40 * (90 - 24))
        if left == 0:
            made.append(step)
            left = window
    assert schedule.allocations() == [*made, 321]
    assert made[0] == 25
    assert made[-1] - made[-2] > 35
    with pytest.raises(SettingError, match=r"schedule\.last_interval must be .* at least 5 \(got 4\)"):
        widening(90, 24, t_i=20, t_f=30, total=350, interval=5, last_interval=4)


def test_one_shot_allocates_once():
    schedule = one_shot(8, 4, t=6, total=20)
    assert [schedule.budget(t) for t in (0, 5, 6, 19)] == [8, 8, 4, 4]
    assert schedule.allocations() == [6]
    assert one_shot(8, 4, t=19, total=20).allocations() == [19]


@pytest.mark.parametrize("interval", [0, 1, 3])
@pytest.mark.parametrize("t_f", [1, 2, 5])
def test_late_s_budget_stays_and_falls_once(interval, t_f):
    if t_f == 1 and interval == 3:
        with pytest.raises(SettingError, match="otherwise no allocation applies the final budget of 4"):
            late(10, 4, 12, t_f, interval)
        return
    schedule = late(10, 4, 12, t_f, interval)
    assert [schedule.budget(t) for t in range(12)] == [10] * (12 - t_f) + [4] * t_f
    steps = schedule.allocations()
    assert sum(t >= 12 - t_f for t in steps) == 1
    assert [t for t in steps if t < 12 - t_f] == ([] if not interval else list(range(0, 12 - t_f, interval)))


@pytest.mark.parametrize("function", [cubic, linear, cosine])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"initial": 3}, r"initial budget must be at least the final one of 4, except .* \(got 3\)"),
        ({"final": 0}, r"final budget must be a whole number of at least 1 \(got 0\)"),
        ({"t_i": -1}, r"schedule\.t_i must be a whole number of at least 0 \(got -1\)"),
        ({"interval": 0}, r"schedule\.interval must be a whole number of at least 1 \(got 0\)"),
        ({"t_i": 5, "t_f": 5}, r"schedule\.t_f must be below the 10 steps \(got 5 \+ 5\)"),
    ],
)
def test_what_cannot_be_is_refused(function, change, says):
    with pytest.raises(SettingError, match=says):
        function(**{"initial": 8, "final": 4, "t_i": 2, "t_f": 3, "total": 10, "interval": 1, **change})


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: one_shot(8, 4, t=0, total=10),
            r"schedule\.t must be a whole number from 1 to 9 \(got 0\), of 10 steps",
        ),
        (
            lambda: one_shot(8, 4, t=10, total=10),
            r"schedule\.t must be a whole number from 1 to 9 \(got 10\), of 10 steps",
        ),
        (lambda: one_shot(4, 8, t=5, total=10), r"must be at least the final one of 8, except .*growing \(got 4\)"),
        (lambda: one_shot(8, 0, t=5, total=10), r"final budget must be a whole number of at least 1 \(got 0\)"),
        (lambda: constant(8, 4, 0, 2, 10), r"must equal the final one of 4 with schedule=constant \(got 8\)"),
        (lambda: growing(8, 4, 0, 2, 10), r"must be at most the final one of 4 with schedule=growing \(got 8\)"),
        (lambda: growing(0, 4, 0, 2, 10), r"initial budget must be a whole number of at least 1 \(got 0\)"),
        (lambda: growing(2, 4, 0, 2, 10, curve="odd"), r"schedule\.curve must be one of linear, cubic \(got odd\)"),
        (lambda: late(4, 4, 12), r"must be above the final one of 4 with schedule=late \(got 4\)"),
        (lambda: late(3, 4, 12), r"must be above the final one of 4 with schedule=late \(got 3\)"),
        (lambda: late(10, 4, 12, 0), r"schedule\.t_f must be a whole number of at least 1 \(got 0\)"),
        (lambda: late(10, 4, 12, 1, -1), r"schedule\.interval must be a whole number of at least 0 \(got -1\)"),
        (lambda: late(10, 4, 12, 12), r"must be below the 12 steps \(got 0 \+ 12\)"),
    ],
)
def test_what_else_cannot_be_is_refused(make, says):
    with pytest.raises(SettingError, match=says):
        make()
