"""Tokenised rows and resized images on disk, so that the jobs of a sweep do not prepare the same rows again.

The cache holds one file per split in the folder that ADARANK_CACHE names (empty: no cache), by default
~/.cache/adarank. A file's name is the digest of everything that determines its content: the data, the tokeniser and the
length, or the image processor. Jobs may share the folder, since files are written atomically. You can delete it at any
time.
"""

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from adarank.runs.files import write_bytes

logger = logging.getLogger(__name__)
FORMAT = 1  # increase it when the same key comes to mean different tokens

Tokens = dict[str, list[list[int]]]


@lru_cache
def warn(message: str) -> None:
    """Log a warning, but the same one only once per process."""
    logger.warning(message)


def folder() -> Path | None:
    """The cache's folder; None if the cache is disabled or, with a warning, if this user has no home folder."""
    setting = os.environ.get("ADARANK_CACHE", str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "adarank"))
    try:
        return Path(setting).expanduser() if setting else None
    except RuntimeError:
        warn(f"{setting} cannot be found (this user has no home folder); the run continues without a cache")
        return None


def key(tokenizer: Any, **inputs: Any) -> str | None:
    """The name of a cached file. inputs: plain values that identify the tokens (data, split, length, …).

    None for tokenisers written in Python (the slow ones), which cannot be serialised.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    state = json.loads(backend.to_str())
    state = {k: v for k, v in state.items() if k not in ("truncation", "padding")}  # left over from the last call
    sides = [tokenizer.truncation_side, tokenizer.model_input_names, type(tokenizer).__name__]
    return digest(inputs, state, sides)


def digest(*decides: Any) -> str:
    """The name of a cached file whose content these plain values determine."""
    canonical = json.dumps([FORMAT, *decides], sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def read(name: str | None) -> Tokens | None:
    """The cached tokens of that name; None if there are none or they cannot be read."""
    where = folder()
    if where is None or name is None:
        return None
    try:
        arrays = load_file(where / f"{name}.safetensors")
    except FileNotFoundError:
        return None
    except OSError as error:
        warn(f"{where} cannot be read ({error.strerror or error}); the run continues without a cache")
        return None
    except SafetensorError as error:
        warn(f"{where / name} cannot be read ({error}); tokenising again")
        return None
    bounds = list(pairwise(accumulate(arrays.pop("lengths").tolist(), initial=0)))
    flat = {part: array.tolist() for part, array in arrays.items()}
    return {part: [ids[first:end] for first, end in bounds] for part, ids in flat.items()}


def write(name: str | None, tokens: Mapping[str, list[list[int]]]) -> None:
    """Cache tokens, of which every part has the same number per row. If the folder cannot be written, only log that."""
    where = folder()
    if where is None or name is None:
        return
    lengths = [len(row) for row in next(iter(tokens.values()))]
    flat = {part: np.array([i for row in rows for i in row], dtype=np.int32) for part, rows in tokens.items()}
    try:
        where.mkdir(parents=True, exist_ok=True)
        write_bytes(where / f"{name}.safetensors", save({**flat, "lengths": np.array(lengths, dtype=np.int64)}))
    except OSError as error:
        warn(f"{where} cannot be written ({error.strerror}); the run continues without a cache")


def stacked(name: str | None, count: int, rows: Callable[[], Iterator[np.ndarray]]) -> np.ndarray:
    """`count` arrays of the same shape and dtype as one array [count, …], memory-mapped from the cached file `name`.

    rows: computes the arrays if nothing is cached. Without a cache, or if it cannot be written, the array is in memory.
    """
    where = folder()
    if where is None or name is None:
        return np.stack(list(rows()))
    path = where / f"{name}.npy"
    try:
        return np.load(path, mmap_mode="r")
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        warn(f"{path} cannot be read ({error}); reading its images again")
    temporary = where / f".{name}.{uuid.uuid4().hex[:12]}.tmp"
    try:
        where.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:  # not mapped: a full disk kills a process that maps
            for number, row in enumerate(rows()):
                if number == 0:
                    header = {"descr": row.dtype.str, "fortran_order": False, "shape": (count, *row.shape)}
                    np.lib.format.write_array_header_1_0(file, header)
                file.write(np.ascontiguousarray(row).data)
        temporary.replace(path)
        return np.load(path, mmap_mode="r")
    except OSError as error:
        warn(f"{where} cannot be written ({error.strerror}); the run continues without a cache")
        return np.stack(list(rows()))
    finally:
        with suppress(OSError):  # it does not exist if it was renamed, or if the folder cannot be written
            temporary.unlink()
