"""Dev carved from train: what is reported chooses nothing."""

import dataclasses

import numpy as np
import pytest

from adarank.errors import SettingError
from adarank.harness.data.tasks.base import Prompts, Split, Task, hold_out


def split(name, rows, pairs=True):
    text = [f"{name} {i}" for i in range(rows)]
    return Split(text, [t + "b" for t in text] if pairs else None, np.arange(rows))


def task(test=None, pairs=True):
    return Task("t", split("train", 40, pairs), split("dev", 8), test, ("a", "b"), ("accuracy",), 16, "f" * 64)


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("size", [10, 0.25])
def test_every_training_row_is_in_one_of_the_two_in_its_order(size, pairs):
    whole = task(pairs=pairs)
    cut = hold_out(whole, size)
    assert len(cut.dev) == 10
    rows = {name: [int(t.split()[1]) for t in getattr(cut, name).text] for name in ("train", "dev")}
    assert sorted(rows["train"] + rows["dev"]) == list(range(40))
    for name, found in rows.items():
        assert found == sorted(found)
        assert getattr(cut, name).label.tolist() == found
        assert getattr(cut, name).pair == ([f"train {i}b" for i in found] if pairs else None)


def test_the_cut_is_always_the_same_and_names_another_task():
    one, two = (hold_out(task(), 10) for _ in range(2))
    assert one.dev.text == two.dev.text
    assert one.fingerprint == two.fingerprint
    assert one.fingerprint != task().fingerprint != hold_out(task(), 11).fingerprint
    assert hold_out(task(), 0.25).fingerprint == one.fingerprint


def test_what_is_reported_is_the_test_set_or_else_dev():
    assert hold_out(task(), 10).test.text == task().dev.text
    with_test = dataclasses.replace(task(), test=split("test", 5))
    assert hold_out(with_test, 10).test.text == with_test.test.text


def test_without_it_the_task_is_as_it_was():
    whole = task()
    assert hold_out(whole, None) is whole


@pytest.mark.parametrize("size", [0, 40, -3, 1.0, 1.5, 0.0, 0.001])
def test_a_cut_that_leaves_nothing_is_refused(size):
    with pytest.raises(SettingError, match=r"holdout must be from 1 to 39 of the 40 training rows, or .* \(got \S+\)"):
        hold_out(task(), size)


def test_prompts_keep_their_references():
    prompts = Prompts([f"p{i}" for i in range(12)], [[f"r{i}", f"s{i}"] for i in range(12)])
    cut = hold_out(dataclasses.replace(task(), train=prompts, task_type="generate"), 3)
    assert (len(cut.train), len(cut.dev)) == (9, 3)
    for part in (cut.train, cut.dev):
        assert part.references == [[f"r{p[1:]}", f"s{p[1:]}"] for p in part.prompt]
