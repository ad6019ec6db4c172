"""Images as a model gets them, and the loss and accuracy of their classes."""

import re

import numpy as np
import pytest
import torch
import transformers

from adarank.errors import SettingError
from adarank.harness.config.compose import spec_from
from adarank.harness.data.task_types import TASK_TYPES, images
from adarank.harness.data.tasks.base import Images, Task
from adarank.harness.models import tiny

Image = pytest.importorskip("PIL.Image")
CPU = torch.device("cpu")


def noise(seed, *shape):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def task(files):
    rows = Images(files, np.arange(len(files)) % 2)
    return Task("pictures", rows, rows, None, ("cat", "dog"), ("accuracy",), 0, f"of {files}", "images")


@pytest.fixture
def files(tmp_path):
    """Colour, grey, transparent and palette images of several sizes and formats."""
    pictures = {"a.png": noise(0, 40, 50, 3), "b.png": noise(1, 30, 20), "c.png": noise(2, 33, 33, 4)}
    pictures |= {"d.gif": noise(3, 64, 48), "e.jpg": noise(4, 50, 40, 3)}
    for name, picture in pictures.items():
        picture.save(tmp_path / name)
    return [tmp_path / name for name in pictures]


PROCESSORS = {
    "vit": lambda: transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}),
    "dinov2": lambda: transformers.BitImageProcessorPil(
        size={"shortest_edge": 34}, crop_size={"height": 28, "width": 28}
    ),
    "does not divide": lambda: transformers.EfficientNetImageProcessorPil(size={"height": 32, "width": 32}),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixel_values_are_the_image_processor_s(name, files):
    processor = PROCESSORS[name]()
    rows = images.encode(task(files), "train", processor)
    batch = images.collate(rows, np.array([4, 1, 2]), CPU)
    chosen = [Image.open(files[i]).convert("RGB") for i in (4, 1, 2)]
    wanted = processor(chosen, return_tensors="pt")["pixel_values"].float()
    assert batch["pixel_values"].dtype == torch.float32
    assert torch.equal(batch["pixel_values"], wanted)
    assert batch["labels"].tolist() == [0, 1, 0]
    assert rows.pixels.dtype == (np.float32 if name == "does not divide" else np.uint8)


def test_what_is_converted(tmp_path):
    deep = np.array([[0, 256, 65535]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.asarray(images.opened(tmp_path / "deep.png", "")).tolist() == [[[0] * 3, [1] * 3, [255] * 3]]
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees
    noise(0, 10, 20, 3).save(tmp_path / "turned.jpg", exif=turned)
    assert images.opened(tmp_path / "turned.jpg", "").size == (10, 20)
    assert images.opened((tmp_path / "turned.jpg").read_bytes(), "row 1").mode == "RGB"


def truncated(path):
    noise(0, 40, 40, 3).save(path)
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    ("name", "write", "reason"),
    [
        ("a.png", truncated, "truncated"),
        ("b.jpg", lambda path: path.write_text("not an image"), "cannot identify image file"),
        ("c.tiff", lambda path: Image.fromarray(np.ones((4, 4), np.float32)).save(path), "mode F"),
        ("d.png", lambda path: None, "No such file or directory"),
    ],
)
def test_an_unreadable_file_is_refused_with_its_path(tmp_path, files, name, write, reason):
    write(tmp_path / f"bad {name}")
    with pytest.raises(SettingError, match=rf"^{re.escape(str(tmp_path))}/bad {name} cannot be read as .*{reason}"):
        images.encode(task([*files, tmp_path / f"bad {name}"]), "train", PROCESSORS["vit"]())
    with pytest.raises(SettingError, match=r"^row 2 of train cannot be read as an image"):
        images.encode(task([files[0].read_bytes(), b"no image"]), "train", PROCESSORS["vit"]())


def test_a_processor_that_leaves_sizes_apart_is_refused(files):
    processor = transformers.ViTImageProcessorPil(do_resize=False)
    with pytest.raises(
        SettingError, match=r"must resize all images to one size \(row 2 of train is 30 × 20, and row 1 is 40"
    ):
        images.encode(task(files), "train", processor)


def test_resized_images_are_cached(tmp_path, monkeypatch, files):
    plain = images.encode(task(files), "train", PROCESSORS["vit"]())
    monkeypatch.setenv("ADARANK_CACHE", str(tmp_path / "cache"))
    first = images.encode(task(files), "train", PROCESSORS["vit"]())
    for file in files[1:]:
        file.write_bytes(b"no image any more")  # the name says that the content is the same
    again = images.encode(task(files), "train", PROCESSORS["vit"]())
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npy"]
    for rows in (first, again):
        assert isinstance(rows.pixels, np.memmap)
        assert np.array_equal(rows.pixels, plain.pixels)
    with pytest.raises(SettingError, match="cannot be read"):  # another processor, other pixels
        images.encode(task(files), "train", PROCESSORS["dinov2"]())
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_damaged_cache_is_written_again(tmp_path, monkeypatch, files):
    monkeypatch.setenv("ADARANK_CACHE", str(tmp_path / "cache"))
    first = np.array(images.encode(task(files), "train", PROCESSORS["vit"]()).pixels)
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    assert np.array_equal(images.encode(task(files), "train", PROCESSORS["vit"]()).pixels, first)
    monkeypatch.setenv("ADARANK_CACHE", str(files[0]))  # a file, in which nothing can be written
    assert np.array_equal(images.encode(task(files), "train", PROCESSORS["vit"]()).pixels, first)


def test_loss_and_accuracy_are_those_of_one_image_at_a_time(files):
    torch.manual_seed(0)
    built = tiny("vit", width=32, layers=1).build(2, images)
    rows = images.encode(task(files), "dev", built.processor)
    config = spec_from(["task=digits", "tiny=true", "train.batch_size=1", "train.precision=fp32"]).train
    kept = []
    found = images.evaluate(built.model, rows, ["accuracy"], config, CPU, per_row=kept.append)
    losses, right = [], []
    for i, file in enumerate(files):
        pixels = built.image_processor(Image.open(file).convert("RGB"), return_tensors="pt")
        logits = built.model.eval()(**pixels).logits[0].double().detach().numpy()
        losses.append(np.log(np.exp(logits).sum()) - logits[i % 2])
        right.append(logits.argmax() == i % 2)
    assert found["accuracy"] == np.mean(right)
    (columns,) = kept
    assert np.array_equal(columns["prediction"] == columns["label"], right)
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-6)
    batch = images.collate(rows, np.arange(5), CPU)
    assert images.loss(built.model, batch).item() == pytest.approx(np.mean(losses), rel=1e-6)
    assert built.model(**batch).loss.item() == pytest.approx(np.mean(losses), rel=1e-6)  # as inits read it
    assert (built.tokenizer, built.head, images.units(rows, np.arange(3))) == (None, ["classifier"], 3)


@pytest.mark.parametrize(
    ("task_type", "model"), [("images", "bert"), *((t, "vit") for t in TASK_TYPES if t != "images")]
)
def test_a_model_of_the_other_kind_is_refused(task_type, model):
    with pytest.raises(SettingError, match=rf"^model=tiny_{model}"):
        tiny(model, width=32, layers=1).build(2, TASK_TYPES[task_type])


def test_the_models_of_images_check_accepts():
    for name in ("vit", "dinov2", "swin", "convnext", "siglip"):
        images.check(transformers.AutoConfig.for_model(name), name)
    with pytest.raises(SettingError, match=r"^m must be a model that classifies images .* architecture llama\)"):
        images.check(transformers.AutoConfig.for_model("llama"), "m")
