"""predictions.npz: written whole, read without pickle, packed small."""

import numpy as np
import pytest

from adarank.errors import SettingError
from adarank.runs import predictions

CLASSES = {
    "label": np.array([0, 2, 1]),
    "prediction": np.array([1, 2, 0]),
    "score": np.array([0.5, 0.9, 0.75], dtype=np.float32),
}
BEST = {
    **CLASSES,
    "label_best": CLASSES["label"],
    "prediction_best": np.array([0, 0, 2]),
    "score_best": CLASSES["score"],
}


def test_what_was_written_is_read_and_no_file_is_no_column(tmp_path):
    assert predictions.read(tmp_path) == {}
    predictions.write(tmp_path, CLASSES)
    first = (tmp_path / "predictions.npz").read_bytes()
    predictions.write(tmp_path, BEST)
    found = predictions.read(tmp_path)
    assert found.keys() == BEST.keys()
    assert all(
        np.array_equal(values, BEST[name]) and values.dtype == BEST[name].dtype for name, values in found.items()
    )
    predictions.write(tmp_path, CLASSES)
    assert (tmp_path / "predictions.npz").read_bytes() == first
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"\x93NUMPY", "object"])
def test_a_damaged_file_and_one_with_objects_are_refused(tmp_path, content):
    path = tmp_path / "predictions.npz"
    if content == "object":
        np.savez(path, label=np.array([{}], dtype=object))
    else:
        path.write_bytes(content)
    with pytest.raises(SettingError, match=r"predictions\.npz is damaged; delete it, or "):
        predictions.read(tmp_path)


@pytest.mark.parametrize("columns", [CLASSES, BEST, {name: 300 * column for name, column in CLASSES.items()}])
def test_classes_are_packed_without_scores(columns):
    found = predictions.unpacked(predictions.packed(columns))
    assert found.keys() == {name for name in columns if not name.startswith("score")}
    assert all(np.array_equal(values, columns[name]) and values.dtype == np.int64 for name, values in found.items())


def test_targets_and_lone_scores_are_not_packed():
    score = CLASSES["score"]
    assert predictions.packed({"label": score, "prediction": score, "score": score}) == {}
    assert predictions.packed({"score": score}) == {}
    assert predictions.unpacked({}) == {}
