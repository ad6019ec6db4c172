from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adarank.errors import SettingError
from adarank.harness.tasks.base import Split
from adarank.harness.tasks.rows import Table, assemble, check_metric, check_sizes, fingerprint, kept, pick

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
    rows = kept(label, limit)
    assert len(rows) == min(limit, len(label))
    assert (np.diff(rows) > 0).all()
    counts = {c: sum(label[rows] == c) for c in set(values)}
    if limit >= len(counts):
        assert min(counts.values()) >= 1
    full = max(counts.values())
    for c, n in counts.items():  # balanced but for classes that ran out
        assert n >= full - 1 or n == values.count(c)


def test_limit_of_a_regression_keeps_the_first_rows():
    assert kept(np.array([3, 1, 2], dtype=np.float32), 2).tolist() == [0, 1]
    assert kept(np.array([3, 1, 2], dtype=np.float32), None).tolist() == [0, 1, 2]


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


def test_pick_names_the_setting_and_the_near_columns():
    columns = {"text": ["a"], "labels": [1]}
    with pytest.raises(SettingError) as error:
        pick("train.csv", columns, "text", None, "label")
    assert str(error.value) == (
        "task.label=label: train.csv has no column label; near names: labels; its columns: text, labels"
    )
    with pytest.raises(SettingError, match=r"^task\.pair=zz: train\.csv has no column zz; valid: labels, text$"):
        pick("train.csv", columns, "text", "zz", "labels")
    with pytest.raises(SettingError, match=r"train\.csv has no rows"):
        pick("train.csv", {"text": [], "label": []}, "text", None, "label")
    assert pick("s", {"0": ["a"], "1": ["b"]}, 0, None, 1).text == ["a"]  # as Hydra reads task.text=0


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (table([], text=[]), "train has no rows; valid: at least one row a split"),
        (table([0, None, ""]), "train: label is missing in row 2 and 1 more; valid: a value in every row"),
        (table([0.5, float("nan")]), "train: label is missing in row 2; valid: a value in every row"),
        (table([0, 1], text=["a", " "]), "train: text is missing in row 2; valid: a value in every row"),
        (table([0, 1], pair=[None, "b"]), "train: pair is missing in row 1; valid: a value in every row"),
        (table([0, 1], text=["a", 5]), "train: text is no text in row 2 (5); valid: strings"),
        (table([0, [1]]), "train: label is no label in row 2 ([1]); valid: a word or a number"),
        (table([1, 1]), "train: every label is 1; valid: at least two classes"),
        (table([2, 3]), "dev: the label 0 (row 1) does not occur in train; valid: 2, 3"),
    ],
)
def test_rows_that_cannot_be_used(train, message):
    with pytest.raises(SettingError) as error:
        build(train, table([0, 1], source="dev"))
    assert str(error.value) == message


def test_sizes_and_metrics_are_checked():
    with pytest.raises(SettingError, match=r"^task\.limit=0 keeps no rows; valid: at least 1, or null for all$"):
        check_sizes(0, 64)
    with pytest.raises(SettingError, match=r"^task\.max_length=4 is too short; valid: at least 8 tokens$"):
        check_sizes(None, 4)
    with pytest.raises(SettingError, match=r"task\.metric=f2 is not known; near names: f1"):
        check_metric("f2")
    with pytest.raises(
        SettingError, match=r"^task\.metric=pearson does not fit labels that are classes .*; valid: acc"
    ):
        build(table([0, 1]), table([0]), metric="pearson")
    with pytest.raises(
        SettingError, match=r"^task\.metric=f1 does not fit labels that are numbers .*; valid: pearson,"
    ):
        build(table([0.5, 1]), table([0]), metric="f1")
    assert build(table([0, 1]), table([0]), metric=("f1", "accuracy")).metrics == ("f1", "accuracy")
    assert build(table([0, 1]), table([0]), metric="f1").metrics == ("f1",)
