"""Images with classes: from folders or the hub, and scikit-learn's handwritten digits."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from adarank.errors import SettingError
from adarank.harness.data.metrics import labels as metrics
from adarank.harness.data.tasks.base import Images, Task, salted_order
from adarank.harness.data.tasks.hub import open_splits
from adarank.harness.data.tasks.readers import folder, holds
from adarank.harness.data.tasks.rows import check_sizes, class_indices, class_order, limited, missing

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SPLITS = {"train": ("train",), "dev": ("dev", "val", "validation"), "test": ("test",)}  # {split: names of its folder}
CARVED = 10  # a split taken from train gets every 10th image of each class


@dataclass(frozen=True)
class Labelled:
    """A split as read.

    source: its origin, for messages; label: the classes; order: all classes in index order, if the source defines one;
    digest: SHA-256 (hex) of the images' content.
    """

    source: str
    image: list[Path | bytes]
    label: list[str]
    order: tuple[str, ...] | None
    digest: list[str]

    def take(self, rows: Sequence[int]) -> "Labelled":
        columns = ([column[i] for i in rows] for column in (self.image, self.label, self.digest))
        image, label, digest = columns
        return Labelled(self.source, image, label, self.order, digest)  # type: ignore[arg-type]


def images(
    path: str | None = None,
    name: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    image: str = "image",
    label: str = "label",
    train: str = "train",
    dev: str | None = "validation",
    test: str | None = "test",
    metric: str | None = None,
    limit: int | None = None,
) -> Task:
    """Images from the folder `path`, or from the hub's data set `name` (image, label: its columns; train, dev, test:
    its splits).

    path holds the folders train and optionally dev (or val, validation) and test, each with one folder of images per
    class, or only the classes' folders. A missing dev is taken from train: a tenth of each class, in a salted order of
    the content; if there are only classes' folders, so is test. metric: accuracy, f1 or matthews; None:
    accuracy. Raises SettingError, naming the folder or row, for unusable data.
    """
    if (path is None) == (name is None):
        raise SettingError("task=images needs either task.path=FOLDER or task.name=NAME, a data set on the hub")
    if metric not in (None, *metrics.fitting(regression=False)):
        valid = ", ".join(metrics.fitting(regression=False))
        raise SettingError(f"task.metric must be one of {valid} for images, or null (got {metric})")
    check_sizes(limit)
    _require_pillow("images")
    if path is not None:
        splits, title = _folders(path), folder(path).resolve().name
    else:
        splits, title = _hub(str(name), config, revision, image, label, {"train": train, "dev": dev, "test": test})
    return _assemble(title, splits, metric, limit)


def digits(limit: int | None = None) -> Task:
    """scikit-learn's 1,797 handwritten digits of 8 × 8 grey pixels (Alpaydin and Kaynak 1998); dev and test take a
    tenth of every class."""
    check_sizes(limit)
    _require_pillow("digits")
    from sklearn.datasets import load_digits

    data = load_digits()
    grey = np.round(data.images * (255 / 16)).astype(np.uint8)
    files: list[Path | bytes] = [b"P5 8 8 255\n" + image.tobytes() for image in grey]  # portable grey maps
    rows = _labelled("scikit-learn's digits", files, [str(target) for target in data.target])
    return _assemble("digits", _carved({"train": rows}, ("dev", "test")), None, limit)


def _require_pillow(task: str) -> None:
    if find_spec("PIL") is None:
        raise SettingError(
            f"task={task} needs the package Pillow, which is not installed; pip install 'adarank[images]'"
        )


def _folders(path: str) -> dict[str, Labelled]:
    """{split: its images} of a folder. A class may be called train, because a split is a folder of folders."""
    where = folder(path)
    if not any(child.is_dir() for child in _visible(where / "train")):
        return _carved({"train": _classes(where, path)}, ("dev", "test"))
    splits = {}
    for split, names in SPLITS.items():
        found = [where / name for name in names if (where / name).is_dir()]
        if len(found) > 1:
            raise SettingError(
                f"task.path={path} must have one folder for {split} (it has {found[0].name} and {found[1].name})"
            )
        if found:
            splits[split] = _classes(found[0], path)
    return splits if "dev" in splits else _carved(splits, ("dev",))


def _classes(where: Path, path: str) -> Labelled:
    """The images of a folder with one folder per class, classes and images sorted by name."""
    source = f"{where.name}/ (task.path={path})" if where != folder(path) else f"task.path={path}"
    layout = "one folder of images per class, or folders train, dev and test with such folders"
    files: list[Path | bytes] = []
    label: list[str] = []
    for each in (child for child in _visible(where) if child.is_dir()):
        children = list(_visible(each))
        if inner := [child.name for child in children if child.is_dir()]:
            raise SettingError(
                f"{source}: the folder {each.name} of a class must hold only images (it holds the folder "
                f"{inner[0]}); task.path must have {layout}"
            )
        own = [child for child in children if child.suffix.lower() in SUFFIXES]
        if not own:
            raise SettingError(f"{source}: the folder {each.name} has no images ({', '.join(SUFFIXES)}; {holds(each)})")
        files += own
        label += [each.name] * len(own)
    if not files:
        raise SettingError(f"{source} has no folder of images; task.path must have {layout} ({holds(where)})")
    return _labelled(source, files, label)


def _visible(where: Path) -> Iterator[Path]:
    """The contents of a folder, sorted by name, without hidden files."""
    if where.is_dir():
        yield from sorted(child for child in where.iterdir() if not child.name.startswith("."))


def _hub(
    name: str, config: str | None, revision: str | None, image: str, label: str, wanted: Mapping[str, str | None]
) -> tuple[dict[str, Labelled], str]:
    """({split: its images}, title) of a data set. A test split without labels (all -1) is omitted."""
    use = "a data set's name while the hub can be reached, or task.path=FOLDER"
    data = open_splits(name, config, revision, wanted, f"task.name={name}", use)
    splits = {split: _table(source, rows, image, label) for split, (source, rows) in data.items()}
    if "test" in splits and all(missing(value) for value in splits["test"].label):
        del splits["test"]
    splits = splits if "dev" in splits else _carved(splits, ("dev",))
    return splits, f"{name}/{config}" if config else name


def _table(source: str, dataset: Any, image: str, label: str) -> Labelled:
    """The rows of a split on the hub; class numbers become class names, and -1, which marks a missing label, becomes
    ""."""
    for setting, column in (("image", image), ("label", label)):
        if column not in dataset.column_names:
            columns = ", ".join(dataset.column_names)
            raise SettingError(f"task.{setting}={column}: {source} has no column {column}; its columns are {columns}")
    from datasets import Image

    if not isinstance(dataset.features[image], Image):
        raise SettingError(
            f"task.image={image}: the column {image} of {source} must hold images (got {dataset.features[image]})"
        )
    undecoded = dataset.cast_column(image, Image(decode=False))[image]
    files: list[Path | bytes] = [row["bytes"] if row["bytes"] is not None else Path(row["path"]) for row in undecoded]
    names = getattr(dataset.features[label], "names", None)
    values = list(dataset[label])
    if names is None:
        return _labelled(source, files, ["" if value is None else str(value) for value in values])
    return _labelled(source, files, ["" if i is None or i < 0 else names[i] for i in values], tuple(names))


def _carved(splits: Mapping[str, Labelled], wanted: Sequence[str]) -> dict[str, Labelled]:
    """`splits` with those of `wanted` taken from train: one in CARVED images of every class, in `salted_order` of their
    content. An image that occurs twice in a class is used once, so that no image is in two splits."""
    train = splits["train"]
    once: dict[str, dict[str, int]] = {}  # {class: {content: its first row}}
    for row, (each, digest) in enumerate(zip(train.label, train.digest, strict=True)):
        once.setdefault(each, {}).setdefault(digest, row)
    rows: dict[str, list[int]] = {"train": [], **{split: [] for split in wanted}}
    for each, found in sorted(once.items()):
        order = [list(found.values())[i] for i in salted_order(list(found))]
        count = max(1, round(len(order) / CARVED))
        if len(order) <= count * len(wanted):
            raise SettingError(
                f"{train.source}: the class {each} has too few images to take {' and '.join(wanted)} from it (it has "
                f"{len(order)}); add images, or create folders train, dev and test"
            )
        for part, split in enumerate(wanted):
            rows[split] += order[part * count : (part + 1) * count]
        rows["train"] += order[len(wanted) * count :]
    return {**splits, **{split: train.take(sorted(numbers)) for split, numbers in rows.items()}}


def _labelled(
    source: str, images: list[Path | bytes], label: list[str], order: tuple[str, ...] | None = None
) -> Labelled:
    """Images with their digests. Raises SettingError if a file cannot be read or there are no rows."""
    if not images:
        raise SettingError(f"{source} has no rows; every split needs at least one")
    return Labelled(source, images, label, order, [_digest(image) for image in images])


def _digest(image: Path | bytes) -> str:
    if isinstance(image, bytes):
        return hashlib.sha256(image).hexdigest()
    try:
        with image.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise SettingError(f"{image} cannot be read ({error.strerror}); correct or remove it") from None


def _assemble(name: str, splits: Mapping[str, Labelled], metric: str | None, limit: int | None) -> Task:
    """A `Task` with checked rows: classes become indices, then `limit` rows per split are kept and fingerprinted."""
    train = splits["train"]
    classes = class_order(train.source, train.label, train.order)
    rows: dict[str, Images] = {}
    digest = hashlib.sha256()
    for key in (key for key in SPLITS if key in splits):
        split = splits[key]
        if "" in split.label:
            raise SettingError(
                f"{split.source}: label is missing in row {split.label.index('') + 1}; every row needs a class"
            )
        label = class_indices(split.source, split.label, classes)
        kept = limited(label, limit)
        rows[key] = Images(split.image, label).take(kept)
        digest.update(json.dumps([key, [split.digest[i] for i in kept], rows[key].label.tolist()]).encode("ascii"))
    parts: dict[str, Any] = {"test": None, **rows}
    about: dict[str, Any] = {"labels": tuple(classes), "metrics": (metric or "accuracy",), "max_length": 0}
    return Task(name, **parts, **about, fingerprint=digest.hexdigest(), task_type="images")
