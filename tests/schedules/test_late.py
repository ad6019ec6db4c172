import pytest

from adarank.errors import SettingError
from adarank.schedules import late


@pytest.mark.parametrize("interval", [0, 1, 3])
@pytest.mark.parametrize("t_f", [1, 2, 5])
def test_the_budget_stays_and_falls_once(interval, t_f):
    if t_f == 1 and interval == 3:
        with pytest.raises(SettingError, match="would never apply the final budget of 4"):
            late(10, 4, 12, t_f, interval)
        return
    schedule = late(10, 4, 12, t_f, interval)
    assert [schedule.budget(t) for t in range(12)] == [10] * (12 - t_f) + [4] * t_f
    steps = schedule.allocations()
    assert sum(t >= 12 - t_f for t in steps) == 1
    assert [t for t in steps if t < 12 - t_f] == ([] if not interval else list(range(0, 12 - t_f, interval)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, 4, 12), "does not lie above the final one of 4; valid: init_rank above rank"),
        ((3, 4, 12), "does not lie above"),
        ((10, 4, 12, 0), r"schedule\.t_f=0 is too small; valid: at least 1"),
        ((10, 4, 12, 1, -1), r"schedule\.interval=-1 is too small; valid: at least 0"),
        ((10, 4, 12, 12), "leave none of the 12 steps"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message):
    with pytest.raises(SettingError, match=message):
        late(*arguments)
