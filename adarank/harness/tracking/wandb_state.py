"""The state of a run's W&B copy, its id and a digest of the files last sent, in .wandb.json in the run's folder.

The id is created once, so that a folder remains one W&B run however often the run is resumed, repeated or sent again.
"""

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

from adarank.runs.files import ALLOCATIONS, CONFIG, METRICS, SUMMARY, read_json, write_json

STATE = ".wandb.json"


def read(folder: Path) -> dict[str, Any]:
    """The id, new if there is none yet, and the digest, None if W&B lacks anything."""
    try:
        state = read_json(folder / STATE)
        return {"id": state["id"], "digest": state["digest"]}
    except (OSError, ValueError, KeyError):
        return {"id": uuid.uuid4().hex[:12], "digest": None}


def write(folder: Path, run_id: str, digest: str | None) -> None:
    """Replace the state of `folder`."""
    write_json(folder / STATE, {"id": run_id, "digest": digest})


def digest(folder: Path, project: str, entity: str | None) -> str:
    """The SHA-256 of everything that is sent and of its destination."""
    total = hashlib.sha256(json.dumps([project, entity, os.environ.get("WANDB_BASE_URL")]).encode())
    for name in (CONFIG, METRICS, ALLOCATIONS, SUMMARY):
        path = folder / name
        total.update(hashlib.sha256(path.read_bytes() if path.exists() else b"").digest())
    return total.hexdigest()
