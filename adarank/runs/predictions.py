"""predictions.npz: a run's prediction for every test row, in the order of the test set.

`label`, `prediction` and `score` belong to the last checkpoint; if the best checkpoint is another one, `label_best`,
`prediction_best` and `score_best` follow. docs/runs.md explains the three for each type of task.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from adarank.errors import SettingError
from adarank.runs.files import PREDICTIONS, replacing

Columns = Mapping[str, np.ndarray]  # {column: values [rows]}
Packed = dict[str, str]
BEST = "_best"
ZERO = ord("0")


def write(folder: Path, columns: Columns) -> None:
    """Replace the file in a run's folder atomically; equal columns always give equal bytes."""
    with replacing(folder / PREDICTIONS) as file:
        np.savez_compressed(file, **columns)  # type: ignore[arg-type]


def read(folder: Path) -> dict[str, np.ndarray]:
    """The columns of the file in a run's folder, {} if there is none. Raises SettingError for a damaged file."""
    path = folder / PREDICTIONS
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        raise SettingError(f"{path} is damaged; delete it, or run its run again with force=true") from None


def packed(columns: Columns) -> Packed:
    """Class labels and predictions as strings of one character per row, which compress well; {} for predictions of any
    other type. Scores are omitted.

    error: label XOR prediction, 0 if the prediction is right; change: the last checkpoint's prediction XOR the best
    one's.
    """
    if "prediction" not in columns or columns["prediction"].dtype.kind != "i":
        return {}
    label, prediction = columns["label"], columns["prediction"]
    numbers = {"label": label, "error": label ^ prediction}
    if f"prediction{BEST}" in columns:
        numbers["change"] = prediction ^ columns[f"prediction{BEST}"]
    return {name: "".join(chr(ZERO + number) for number in values.tolist()) for name, values in numbers.items()}


def unpacked(texts: Packed) -> dict[str, np.ndarray]:
    """The inverse of `packed`: the columns, without scores."""
    numbers = {name: np.array([ord(c) - ZERO for c in text], dtype=np.int64) for name, text in texts.items()}
    if not numbers:
        return {}
    label = numbers["label"]
    prediction = label ^ numbers["error"]
    columns = {"label": label, "prediction": prediction}
    if "change" in numbers:
        columns |= {f"label{BEST}": label, f"prediction{BEST}": prediction ^ numbers["change"]}
    return columns
