"""Reads an adapter's folder in either format, and writes a new folder completely or not at all."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from adarank.adapters.parametrisation import lookup
from adarank.adapters.saving import check_factors, read_adapter
from adarank.errors import SettingError
from adarank.integrations.peft_export import FILES
from adarank.integrations.peft_import import read_peft
from adarank.runs.files import ADAPTER, SUMMARY, read_json


class Opened(NamedTuple):
    """tensors, description: as `adarank.adapters.saving.read_adapter` returns them; path: the folder they came from;
    peft: whether they were in PEFT's format; summary: the run's summary.json, {} if the folder is not a run's."""

    tensors: dict[str, Tensor]
    description: dict[str, Any]
    path: Path
    peft: bool
    summary: Mapping[str, Any]


def open_folder(folder: Path) -> Opened:
    """Read an adapter's folder, or the adapter in a finished run's folder. Raises SettingError if there is none."""
    if not folder.is_dir():
        raise SettingError(
            f"FOLDER must be the folder of an adapter or of a finished run (got {folder}, which is not a folder)"
        )
    is_run = (folder / SUMMARY).is_file() and (folder / ADAPTER).is_dir()
    path = folder / "adapter" if is_run else folder
    peft = (path / FILES[0]).is_file()
    if not peft and not (path / "adapter.json").is_file():
        raise SettingError(
            f"FOLDER={folder} holds no adapter (neither adapter.json nor {FILES[0]}); give a folder that "
            "adarank.save_adapter or PEFT wrote, or the folder of a finished run that has an adapter/"
        )
    tensors, description = (read_peft if peft else read_adapter)(path)
    for name, tensor in tensors.items():
        if not name.isprintable():
            raise SettingError(f"{path} is damaged: {name!r} cannot be a module name")
        if not tensor.isfinite().all():
            raise SettingError(f"{path} is damaged: {name} contains numbers that are not finite")
    if lookup(description["kind"]) is not None:
        for name, info in description["modules"].items():
            check_factors(path, name, info, tensors, description["kind"])
    try:
        summary = read_json(folder / SUMMARY) if is_run else {}
    except ValueError as error:
        raise SettingError(f"{folder}/summary.json is damaged: {error}") from None
    return Opened(tensors, description, path, peft, summary if isinstance(summary, dict) else {})


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Open a temporary folder, and rename it to `out` unless something fails. Raises SettingError if `out` exists or
    cannot be written."""
    if out.exists() or out.is_symlink():
        raise SettingError(f"OUT={out} already exists and is not overwritten; give a folder that does not exist yet")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(out)
    except OSError as error:
        raise SettingError(f"OUT={out} cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
