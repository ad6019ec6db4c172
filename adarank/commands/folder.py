"""An adapter's folder, whoever wrote it, and a new folder that is there whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from adarank.adapters.lowrank import KINDS
from adarank.adapters.saving import check_factors, read_adapter
from adarank.errors import SettingError
from adarank.integrations.peft_export import FILES
from adarank.integrations.peft_import import read_peft


class Opened(NamedTuple):
    """tensors, description: as `adarank.adapters.saving.read_adapter` returns them; path: the folder they came from;
    peft: whether PEFT's format it was; summary: the run's summary.json, {} where the folder is no run's."""

    tensors: dict[str, Tensor]
    description: dict[str, Any]
    path: Path
    peft: bool
    summary: Mapping[str, Any]


def open_folder(folder: Path) -> Opened:
    """Read an adapter's folder, or the adapter of a finished run's folder. SettingError where it holds none."""
    if not folder.is_dir():
        raise SettingError(f"FOLDER={folder} is no folder; valid: an adapter's folder, or a finished run's")
    is_run = (folder / "summary.json").is_file() and (folder / "adapter").is_dir()
    path = folder / "adapter" if is_run else folder
    peft = (path / FILES[0]).is_file()
    if not peft and not (path / "adapter.json").is_file():
        raise SettingError(
            f"FOLDER={folder} holds no adapter (neither adapter.json nor {FILES[0]}); valid: a folder that "
            "adarank.save_adapter or PEFT wrote, or a finished run's that has an adapter/"
        )
    tensors, description = (read_peft if peft else read_adapter)(path)
    for name, tensor in tensors.items():
        if not name.isprintable():
            raise SettingError(f"{path} is damaged: the name {name!r} cannot be one of a module")
        if not tensor.isfinite().all():
            raise SettingError(f"{path} is damaged: {name} holds numbers that are not finite")
    if description["kind"] in KINDS:
        for name, info in description["modules"].items():
            check_factors(path, name, info, tensors)
    return Opened(tensors, description, path, peft, _summary(folder) if is_run else {})


def _summary(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise SettingError(f"{folder}/summary.json is damaged: {error}") from None
    return found if isinstance(found, dict) else {}


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out`, renamed to it at the end and removed where something fails. SettingError where
    `out` exists already or cannot be written."""
    if out.exists() or out.is_symlink():
        raise SettingError(f"OUT={out} exists already and is not overwritten; valid: a folder that does not exist yet")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(out)
    except OSError as error:
        raise SettingError(f"OUT={out} cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
