"""Image classification with a head on a vision model, one class per image. Loss and metrics are those of `classify`.

Every image is read, oriented according to its EXIF data, converted to RGB and resized once before training by the
model's own image processor; the result, uint8 in most cases, is cached. Batches are then only rescaled and normalised.
There is no augmentation, so that every method sees the same pixels.
"""

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from adarank.errors import SettingError
from adarank.harness.config.spec import TrainConfig
from adarank.harness.data import cache
from adarank.harness.data.task_types import classify
from adarank.harness.data.task_types.classify import FRESH_HEAD as FRESH_HEAD
from adarank.harness.data.task_types.classify import loss as loss
from adarank.harness.data.task_types.classify import outputs as outputs
from adarank.harness.data.task_types.classify import units as units
from adarank.harness.data.tasks.base import Images, Task
from adarank.runs.predictions import Columns

if TYPE_CHECKING:
    from PIL.Image import Image

AUTO = "AutoModelForImageClassification"
PROCESSOR = "AutoImageProcessor"
ONE_PASS = "task type images, whose rows all have the same length"
# The two halves of an image processor's steps.
RESIZED: Mapping[str, Any] = {"do_rescale": False, "do_normalize": False, "return_tensors": "np"}
FINISHED: Mapping[str, Any] = {
    "do_resize": False, "do_center_crop": False, "do_convert_rgb": False, "input_data_format": "channels_first",
    "return_tensors": "np",
}  # fmt: skip


def check(config: Any, model: str) -> None:
    from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

    if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        raise SettingError(
            f"{model} must be a model that classifies images for this task (got the architecture {config.model_type}); "
            "choose a ViT or DINOv2, for example model=hub model.name=google/vit-base-patch16-224-in21k, or "
            "model=tiny_vit"
        )


@dataclass(frozen=True)
class Encoded:
    """The images of a split.

    pixels: [rows, channels, height, width], resized; label: [rows]; finish: turns some of them into the model's pixel
    values, float32 of the same shape.
    """

    pixels: np.ndarray
    label: Tensor
    finish: Callable[[np.ndarray], np.ndarray]

    def __len__(self) -> int:
        return len(self.label)

    @property
    def lengths(self) -> np.ndarray:
        """1 for each image, since all images cost the same."""
        return np.ones(len(self), dtype=np.int64)


def encode(task: Task, split: str, processor: Any, /) -> Encoded:
    """Raises SettingError, naming the file, for an image that cannot be read."""
    rows: Images = getattr(task, split)
    first = opened(rows.image[0], f"row 1 of {split}")
    halves = _finish(processor, np.asarray(processor(first, **RESIZED)["pixel_values"]))
    whole = np.asarray(processor(first, return_tensors="np")["pixel_values"])
    # A few processors cannot be split into two halves. Their finished pixels are kept, which takes four times the
    # memory.
    divides = halves.shape == whole.shape and np.array_equal(halves, whole)
    steps = RESIZED if divides else {"return_tensors": "np"}

    def finish(pixels: np.ndarray) -> np.ndarray:
        return _finish(processor, pixels) if divides else pixels.astype(np.float32)

    def images() -> Iterator[np.ndarray]:
        shape = None
        for row, source in enumerate(rows.image, 1):
            pixels = np.asarray(processor(opened(source, f"row {row} of {split}"), **steps)["pixel_values"])[0]
            shape = shape or pixels.shape
            if pixels.shape != shape:
                raise SettingError(
                    f"task={task.name}: the model's image processor must resize all images to one size (row {row} of "
                    f"{split} is {_size(pixels.shape)}, and row 1 is {_size(shape)}); choose another model"
                )
            yield pixels

    import PIL

    about = [type(processor).__name__, processor.to_json_string(), divides, PIL.__version__]
    key = cache.digest(f"{task.fingerprint} {split}", about)
    return Encoded(cache.stacked(key, len(rows), images), torch.from_numpy(rows.label), finish)


def opened(source: "Path | bytes", name: str) -> "Image":
    """An image in RGB. source: its file or its content; name: the name of the content in messages.

    Transparency is dropped, as `convert` does; 16-bit grey is scaled to 8 bits, which `convert` would clip. Raises
    SettingError, naming the file, if the image cannot be read.
    """
    from PIL import Image, ImageOps

    where = str(source) if isinstance(source, Path) else name
    try:
        with Image.open(source if isinstance(source, Path) else BytesIO(source)) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):
                return Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8)).convert("RGB")
            if upright.mode in ("I", "F"):
                raise ValueError(f"its pixels have 32 bits, in Pillow's mode {upright.mode}")
            return upright.convert("RGB")
    # Pillow's plugins raise all of these for damaged files.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise SettingError(
            f"{where} cannot be read as an image ({reason}); images must be files that Pillow opens, with 8 bits per "
            "channel or 16-bit grey"
        ) from None


def _finish(processor: Any, pixels: np.ndarray) -> np.ndarray:
    """Resized images, rescaled and normalised, float32."""
    return np.asarray(processor(list(pixels), **FINISHED)["pixel_values"], dtype=np.float32)


def _size(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape[1:]))


def collate(rows: Encoded, numbers: np.ndarray, device: torch.device) -> dict[str, Tensor]:
    """pixel_values, float32 [batch, channels, height, width], and labels [batch]."""
    pixels = torch.from_numpy(rows.finish(rows.pixels[numbers]))
    labels = rows.label[torch.from_numpy(numbers)]
    return {name: t.to(device, non_blocking=True) for name, t in (("pixel_values", pixels), ("labels", labels))}


def evaluate(
    model: nn.Module,
    rows: Encoded,
    names: Sequence[str],
    config: TrainConfig,
    device: torch.device,
    *,
    per_row: Callable[[Columns], None] | None = None,
) -> dict[str, float]:
    return classify.evaluate(model, rows, names, config, device, collate, per_row=per_row)
