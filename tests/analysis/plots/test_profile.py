import numpy as np
import pytest

from analysis import stats
from analysis.plots import profile
from analysis.verdicts import AcrossTasks, Standardised

EFFECT = stats.OverTasks(0.5, (0.1, 0.9), 0.0, 0.0, 5)


def over(tasks, *pairs):
    rows = [Standardised(f"m{i} − LoRA", EFFECT, [None] * tasks, np.array(x), None) for i, x in enumerate(pairs)]
    return AcrossTasks("title", tuple(f"t{i}" for i in range(tasks)), rows)


def test_a_line_falls_from_one_to_none_at_the_pairs():
    figure = profile.draw(over(5, [-1.0, 0.5, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0]))
    lines = figure.axes[0].get_lines()[:2]
    x, y = lines[0].get_data()
    assert x[1:-1].tolist() == [-1.0, 0.5, 1.0, 2.0]
    assert y[1:-1] == pytest.approx([0.75, 0.5, 0.25, 0.0])  # to the right of each
    assert (y[0], y[-1]) == (1.0, 0.0)
    assert [line.get_label() for line in lines] == ["m0 − LoRA", "m1 − LoRA"]


def test_few_tasks_have_no_profile():
    assert profile.draw(over(4, [1.0])) is None
    assert profile.draw(over(5)) is None
