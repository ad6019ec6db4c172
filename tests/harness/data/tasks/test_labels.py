import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adarank.errors import SettingError
from adarank.harness.data.tasks import rows


@pytest.mark.parametrize(
    ("train", "dev", "expected"),
    [
        (["1", "10", "2"], ["2"], [1, 10, 2]),
        ([0, 1], ["1"], [0, 1]),
        (["0.0", 1.0], ["1"], [0, 1]),
        (["1e1", "-2.0"], [10], [10, -2]),
        ([1, 2.5], [1], [1.0, 2.5]),
        (["1", "b"], ["b"], ["1", "b"]),
        ([True, False], [True], ["True", "False"]),
        (["nan", "0.5"], ["0.5"], ["nan", "0.5"]),
        (["1_0", "2"], ["2"], ["1_0", "2"]),
    ],
)
def test_train_decides_the_type_and_the_others_follow(train, dev, expected):
    found = rows.typed_labels({"train": train, "dev": dev})
    assert found["train"] == expected
    assert [type(v) for v in found["train"]] == [type(v) for v in expected]
    assert {type(v) for v in found["dev"]} == {type(expected[0])}


def test_what_does_not_follow_stays_as_it_is_to_be_refused_by_row():
    assert rows.typed_labels({"train": [0, 1], "dev": ["0.5", "a", "1.0"]})["dev"] == ["0.5", "a", 1]
    assert rows.typed_labels({"train": [0.5], "dev": ["a", "1"]})["dev"] == ["a", 1.0]
    with pytest.raises(SettingError, match=r"^dev: the label 'a' of row 2 must be a number, like those of train$"):
        rows.regression_targets("dev", [0.5, "a"])


def test_words_stay_words():
    assert rows.typed_labels({"train": ["1", "2"]}, words=True) == {"train": ["1", "2"]}


def test_classes_are_sorted_numbers_by_size():
    assert rows.class_order("train", [10, 2, 2]) == [2, 10]
    assert rows.class_order("train", ["b", "a"]) == ["a", "b"]
    assert rows.class_order("train", ["b", "a"], order=["c", "b", "a"]) == ["b", "a"]


@given(st.lists(st.integers(-5, 5), min_size=2).filter(lambda v: len(set(v)) > 1))
def test_indices_lead_back_to_the_labels(values):
    classes = rows.class_order("train", values)
    found = rows.class_indices("train", values, classes)
    assert found.dtype == np.int64
    assert [classes[i] for i in found] == values


def test_one_class_is_refused():
    with pytest.raises(SettingError, match=r"^train\.csv: every label is 'a'; there must be at least two classes$"):
        rows.class_order("train.csv", ["a", "a"])


def test_a_label_that_train_lacks_is_refused():
    with pytest.raises(
        SettingError, match=r"^dev: the label 3 of row 2 does not occur in train, whose labels are 1, 2$"
    ):
        rows.class_indices("dev", [1, 3], [1, 2])
    with pytest.raises(SettingError, match=r"labels are 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, … \(30 in all\)"):
        rows.class_indices("dev", [99], range(30))


def test_targets():
    found = rows.regression_targets("train", [1.5, 2.0])
    assert found.dtype == np.float32
    assert found.tolist() == [1.5, 2.0]
    with pytest.raises(SettingError, match=r"the label 1e\+60 of row 2 is too large"):
        rows.regression_targets("train", [1.0, 1e60])
