"""Tokenised rows on disk, so that the jobs of a sweep do not tokenise the same rows again.

One file a split under the folder that ADARANK_CACHE names (empty: no cache), by default ~/.cache/adarank. Its name is the
digest of everything that decides its content: the data, the tokeniser and the length. Jobs may share the folder: a file
appears whole or not at all, and two that write the same one write the same bytes. Delete it whenever you like.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from adarank.harness.files import write_bytes

logger = logging.getLogger(__name__)
FORMAT = 1  # bump when the same key means other tokens

Tokens = dict[str, list[list[int]]]


def folder() -> Path | None:
    """Where the files lie; None: nowhere."""
    named = os.environ.get("ADARANK_CACHE")
    if named is not None:
        return Path(named).expanduser() if named else None
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "adarank"


def key(tokenizer: Any, **what: Any) -> str | None:
    """The name of a file: what (data, split, length) was tokenised, and how. None where a tokeniser cannot tell how it works
    (the slow ones, written in Python)."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    how = json.loads(backend.to_str())
    how = {k: v for k, v in how.items() if k not in ("truncation", "padding")}  # state left by the last call
    sides = [tokenizer.truncation_side, tokenizer.model_input_names, type(tokenizer).__name__]
    canonical = json.dumps([FORMAT, what, how, sides], sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def read(name: str | None) -> Tokens | None:
    """The tokens of that name; None where there are none to be read."""
    at = folder()
    if at is None or name is None:
        return None
    try:
        held = load_file(at / f"{name}.safetensors")
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError) as error:
        logger.warning("%s: cannot be read (%s); tokenised again", at / name, error)
        return None
    lengths = held.pop("lengths").tolist()
    bounds = list(pairwise(accumulate(lengths, initial=0)))
    return {kind: _cut(flat.tolist(), bounds) for kind, flat in held.items()}


def _cut(flat: list[int], bounds: list[tuple[int, int]]) -> list[list[int]]:
    return [flat[first:end] for first, end in bounds]


def write(name: str | None, tokens: Mapping[str, list[list[int]]]) -> None:
    """Keep tokens (of each kind as many a row as of every other) under that name, where that can be done."""
    at = folder()
    if at is None or name is None:
        return
    lengths = [len(row) for row in next(iter(tokens.values()))]
    flat = {kind: np.array([i for row in rows for i in row], dtype=np.int32) for kind, rows in tokens.items()}
    try:
        at.mkdir(parents=True, exist_ok=True)
        write_bytes(at / f"{name}.safetensors", save({**flat, "lengths": np.array(lengths, dtype=np.int64)}))
    except OSError as error:
        logger.warning("%s: cannot be written (%s); the run goes on without a cache", at, error.strerror)
