"""Images from folders, the hub and scikit-learn: which rows they become, and what is refused."""

import hashlib
import shutil
import sys
from io import BytesIO

import numpy as np
import pytest

from adarank.errors import SettingError
from adarank.harness.data.tasks.images import digits, images

Image = pytest.importorskip("PIL.Image")


def picture(number):
    """The bytes of a PNG that no other number has."""
    out = BytesIO()
    Image.fromarray(np.array([[number % 256, number // 256]], dtype=np.uint8)).save(out, "png")
    return out.getvalue()


def write(folder, counts, first=0):
    """Folders of images: {class: how many}."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            (folder / name / f"{i:03}.png").write_bytes(picture(first := first + 1))
    return folder


def digests(rows):
    return [hashlib.sha256(i if isinstance(i, bytes) else i.read_bytes()).hexdigest() for i in rows.image]


def test_folders_of_splits(tmp_path):
    write(tmp_path / "train", {"cat": 3, "dog": 2})
    write(tmp_path / "val", {"cat": 1}, 10)
    write(tmp_path / "test", {"dog": 2}, 20)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "train" / ".DS_Store").write_text("hidden")
    task = images(str(tmp_path))
    assert (task.task_type, task.labels, task.metrics, task.max_length) == ("images", ("cat", "dog"), ("accuracy",), 0)
    assert [path.relative_to(tmp_path).as_posix() for path in task.train.image] == [
        "train/cat/000.png", "train/cat/001.png", "train/cat/002.png", "train/dog/000.png", "train/dog/001.png",
    ]  # fmt: skip
    assert [s.label.tolist() for s in (task.train, task.dev, task.test)] == [[0, 0, 0, 1, 1], [0], [1, 1]]
    assert images(str(tmp_path), limit=2).train.label.tolist() == [0, 1]


def test_classes_alone_are_carved_by_content(tmp_path):
    write(tmp_path / "a", {"cat": 30, "dog": 20, "train": 4})  # a class may be called train
    (tmp_path / "a" / "cat" / "copy.png").write_bytes(picture(1))
    task = images(str(tmp_path / "a"))
    train, dev, test = (digests(rows) for rows in (task.train, task.dev, task.test))
    assert np.bincount(task.dev.label).tolist() == np.bincount(task.test.label).tolist() == [3, 2, 1]
    assert sorted(train + dev + test) == sorted(hashlib.sha256(picture(i)).hexdigest() for i in range(1, 55))
    for folder in sorted((tmp_path / "a").iterdir()):  # other names for the same files
        for i, path in enumerate(sorted(folder.iterdir(), reverse=True)):
            path.rename(folder / f"x{i:03}.png")
    other = images(str(tmp_path / "a"))
    assert [set(digests(rows)) for rows in (other.train, other.dev, other.test)] == [set(train), set(dev), set(test)]


def test_a_missing_dev_is_taken_from_train_alone(tmp_path):
    write(tmp_path / "train", {"cat": 20, "dog": 10})
    write(tmp_path / "test", {"cat": 3, "dog": 3}, 100)
    task = images(str(tmp_path))
    assert [np.bincount(s.label).tolist() for s in (task.train, task.dev, task.test)] == [[18, 9], [2, 1], [3, 3]]


def test_the_fingerprint_is_of_the_content(tmp_path):
    a, b = (write(tmp_path / name, {"cat": 3, "dog": 3}) for name in "ab")
    assert images(str(a)).fingerprint == images(str(b)).fingerprint
    (b / "dog" / "002.png").write_bytes(picture(99))
    assert images(str(a)).fingerprint != images(str(b)).fingerprint


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, r"^task\.path=.* has no folder of images; .*train, dev and test.*\(it is empty\)$"),
        (lambda p: write(p, {"cat": 5}), r"every label is 'cat'; there must be at least two classes$"),
        (lambda p: write(p, {"cat": 5, "dog": 0}), r"the folder dog has no images \(\.png, .*; it is empty\)$"),
        (lambda p: write(p, {"cat": 5, "dog": 2}), r"class dog has too few images to take dev and test .*\(it has 2\)"),
        (lambda p: write(p / "Train", {"cat": 5, "dog": 5}), r"the folder Train of a class .* the folder cat\)"),
        (
            lambda p: [write(p / s, {"cat": 3, "dog": 3}) for s in ("train", "dev", "val")],
            r"must have one folder for dev \(it has dev and val\)$",
        ),
        (
            lambda p: [write(p / "train", {"cat": 3, "dog": 3}), write(p / "dev", {"fox": 1})],
            r"^dev/ \(task\.path=.*: the label 'fox' of row 1 does not occur in train, whose labels are cat, dog$",
        ),
    ],
    ids=["empty", "one class", "empty class", "few", "capital", "two devs", "unknown class"],
)
def test_a_folder_that_cannot_be_used(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(SettingError, match=message):
        images(str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"^task=images needs either task\.path=FOLDER or task\.name=NAME"),
        ({"path": "a", "name": "b"}, r"^task=images needs either"),
        ({"path": "/nowhere"}, r"^task\.path must be a folder with the task's files \(/nowhere does not exist\)$"),
        ({"path": "a", "metric": "pearson"}, r"^task\.metric must be one of accuracy, .* \(got pearson\)$"),
        ({"path": "a", "limit": 0}, r"^task\.limit must be at least 1, or null for all rows \(got 0\)$"),
    ],
)
def test_settings_that_cannot_be_used(settings, message):
    with pytest.raises(SettingError, match=message):
        images(**settings)


def test_without_pillow_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(SettingError) as error:
        digits()
    assert str(error.value) == (
        "task=digits needs the package Pillow, which is not installed; pip install 'adarank[images]'"
    )


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    task = digits()
    assert (len(task.train), len(task.dev), len(task.test)) == (1439, 179, 179)
    found = []
    for rows in (task.train, task.dev, task.test):
        for content, label in zip(rows.image, rows.label, strict=True):
            found.append((tuple(np.round(np.asarray(Image.open(BytesIO(content))) * (16 / 255)).ravel()), label))
    data = load_digits()
    assert sorted(found) == sorted((tuple(image), label) for image, label in zip(data.data, data.target, strict=True))
    assert np.bincount(digits(limit=20).test.label).tolist() == [2] * 10


@pytest.fixture
def hub(tmp_path):
    """A data set as the hub has them: Parquet files with images and class names; the test has no labels."""
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("pyarrow")
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["dog", "cat"])})
    for split, labels in (("train", [0, 1] * 5), ("test", [-1, -1])):
        rows = {"img": [{"bytes": picture(len(split) + i), "path": None} for i in range(len(labels))], "label": labels}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
    yield str(tmp_path)
    shutil.rmtree(tmp_path)


def test_images_of_the_hub(hub):
    task = images(name=hub, image="img", dev=None)
    assert (task.labels, task.test) == (("dog", "cat"), None)  # in the data set's order
    assert [np.bincount(s.label).tolist() for s in (task.train, task.dev)] == [[4, 4], [1, 1]]
    label = {hashlib.sha256(picture(5 + i)).hexdigest(): i % 2 for i in range(10)}
    assert [label[d] for d in digests(task.train)] == task.train.label.tolist()
    for settings, message in (
        ({"image": "pixels"}, r"^task\.image=pixels: split train .* has no column pixels; its columns are img, label$"),
        (
            {"image": "label"},
            r"^task\.image=label: the column label of split train .* must hold images \(got ClassLabel",
        ),
        ({"image": "img", "dev": "validation"}, r"has no split validation; its splits are train, test$"),
    ):
        with pytest.raises(SettingError, match=message):
            images(**{"name": hub, "dev": None, **settings})
