from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adarank.errors import SettingError
from adarank.harness.data.tasks.base import Split
from adarank.harness.data.tasks.rows import Table, assemble, check_metric, check_sizes, fingerprint, limited
from adarank.harness.data.tasks.rows import table as table_of

NAMES = ("text", None, "label")


def table(label, text=None, pair=None, source="train"):
    text = text or [f"row {i}" for i in range(len(label))]
    return Table(source, text, pair, list(label), ("text", "pair" if pair else None, "label"))


def build(train, dev, test=None, limit=None, max_length=16, metric=None):
    return assemble("t", train, dev, test, limit=limit, max_length=max_length, metric=metric)


def test_classes_and_targets():
    task = build(table(["b", "a"]), table(["a"], source="dev"), table(["b"], source="test"))
    assert (task.labels, task.metrics, task.max_length, task.name) == (("a", "b"), ("accuracy",), 16, "t")
    assert task.train.label.tolist() == [1, 0]
    assert task.test is not None
    assert task.test.label.tolist() == [1]
    task = build(table([0.5, 1.0]), table([2], source="dev"))
    assert (task.labels, task.metrics, task.test) == ((), ("pearson_spearman",), None)
    assert task.dev.label.dtype == np.float32
    task = build(replace(table(["b", "a"]), order=("b", "c", "a")), table(["a"]))
    assert (task.labels, task.train.label.tolist()) == (("b", "a"), [0, 1])


def test_a_regression_may_have_one_target():
    assert build(table([0.5, 0.5]), table([0.5])).labels == ()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 45))
def test_limit_keeps_every_class_and_the_order(values, limit):
    label = np.array(values)
    rows = limited(label, limit)
    assert len(rows) == min(limit, len(label))
    assert (np.diff(rows) > 0).all()
    counts = {c: sum(label[rows] == c) for c in set(values)}
    if limit >= len(counts):
        assert min(counts.values()) >= 1
    full = max(counts.values())
    for c, n in counts.items():  # balanced but for classes that ran out
        assert n >= full - 1 or n == values.count(c)


def test_limit_of_a_regression_keeps_the_first_rows():
    assert limited(np.array([3, 1, 2], dtype=np.float32), 2).tolist() == [0, 1]
    assert limited(np.array([3, 1, 2], dtype=np.float32), None).tolist() == [0, 1, 2]


def test_limit_is_per_split_and_keeps_pairs_beside_their_texts():
    train = table([0, 0, 1, 1], text=list("abcd"), pair=list("ABCD"))
    task = build(train, table([1, 0, 1], pair=list("xyz"), source="dev"), limit=2)
    assert (task.train.text, task.train.pair, task.train.label.tolist()) == (["a", "c"], ["A", "C"], [0, 1])
    assert task.dev.pair == ["x", "y"]
    # classes are those of all rows, whatever is kept
    assert build(train, table([1, 0], pair=["x", "y"]), limit=1).labels == ("0", "1")


rows = st.lists(st.tuples(st.text(max_size=3), st.text(max_size=3), st.integers(0, 2)), min_size=1, max_size=4)


def split(values):
    return Split([a for a, _, _ in values], [b for _, b, _ in values], np.array([c for _, _, c in values]))


@given(rows, rows)
def test_fingerprints_are_equal_iff_rows_are(a, b):
    assert (fingerprint({"train": split(a)}) == fingerprint({"train": split(b)})) == (a == b)


def test_the_fingerprint_sees_every_part():
    text, label = ["a", "b"], np.array([0, 1])
    base = Split(text, None, label)
    variants = [
        {"train": base},
        {"dev": base},
        {"train": base, "test": base},
        {"train": Split(text, text, label)},
        {"train": Split(text, None, label[::-1])},
        {"train": Split(text, None, label.astype(np.float32))},
        {"train": Split(["ab", ""], None, label)},
    ]
    assert len({fingerprint(v) for v in variants}) == len(variants)
    train, dev = table([0, 1, 0, 1]), table([0, 1])
    assert build(train, dev, limit=2).fingerprint != build(train, dev).fingerprint
    assert build(train, dev, limit=4).fingerprint == build(train, dev).fingerprint


def test_a_column_that_is_missing_names_the_setting_and_the_columns():
    columns = {"text": ["a"], "labels": [1]}
    with pytest.raises(SettingError) as error:
        table_of("train.csv", columns, "text", None, "label")
    assert str(error.value) == ("task.label=label: train.csv has no column label; its columns are text, labels")
    with pytest.raises(
        SettingError, match=r"^task\.pair=zz: train\.csv has no column zz; its columns are text, labels$"
    ):
        table_of("train.csv", columns, "text", "zz", "labels")
    with pytest.raises(SettingError, match=r"train\.csv has no rows"):
        table_of("train.csv", {"text": [], "label": []}, "text", None, "label")
    assert table_of("s", {"0": ["a"], "1": ["b"]}, 0, None, 1).text == ["a"]  # as Hydra reads task.text=0


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (table([], text=[]), "train has no rows; every split needs at least one"),
        (table([0, None, ""]), "train: label is missing in row 2 and 1 more; every row needs a value"),
        (table([0.5, float("nan")]), "train: label is missing in row 2; every row needs a value"),
        (table([0, 1], text=["a", " "]), "train: text is missing in row 2; every row needs a value"),
        (table([0, 1], pair=[None, "b"]), "train: pair is missing in row 1; every row needs a value"),
        (table([0, 1], text=["a", 5]), "train: text in row 2 must be a string (got 5)"),
        (table([0, [1]]), "train: label in row 2 must be a word or a number (got [1])"),
        (table([1, 1]), "train: every label is 1; there must be at least two classes"),
        (table([2, 3]), "dev: the label 0 of row 1 does not occur in train, whose labels are 2, 3"),
    ],
)
def test_rows_that_cannot_be_used(train, message):
    with pytest.raises(SettingError) as error:
        build(train, table([0, 1], source="dev"))
    assert str(error.value) == message


def test_sizes_and_metrics_are_checked():
    with pytest.raises(SettingError, match=r"^task\.limit must be at least 1, or null for all rows \(got 0\)$"):
        check_sizes(0, 64)
    with pytest.raises(SettingError, match=r"^task\.max_length must be at least 8 tokens \(got 4\)$"):
        check_sizes(None, 4)
    with pytest.raises(SettingError, match=r"task\.metric must be one of accuracy, f1, .* \(got f2\)"):
        check_metric("f2")
    with pytest.raises(
        SettingError, match=r"^task\.metric must be one of accuracy, .* labels that are classes .* \(got pearson\)"
    ):
        build(table(["a", "b"]), table(["a"]), metric="pearson")
    with pytest.raises(
        SettingError, match=r"^task\.metric must be one of pearson, .* labels that are numbers .* \(got f1\)"
    ):
        build(table([0.5, 1]), table([0]), metric="f1")
    assert build(table([0, 1]), table([0]), metric=("f1", "accuracy")).metrics == ("f1", "accuracy")
    assert build(table([0, 1]), table([0]), metric="f1").metrics == ("f1",)
