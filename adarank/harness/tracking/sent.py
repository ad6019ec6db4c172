"""What W&B has of a run: its id there and a digest of what was sent last, in .wandb.json of the run's folder.

The id is made once, so that one folder is one W&B run however often it is resumed, run again or sent again.
"""

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

from adarank.harness.files import write_json
from adarank.harness.tracking.local import ALLOCATIONS, METRICS, SUMMARY

MARK = ".wandb.json"


def read(folder: Path) -> dict[str, Any]:
    """id and digest (None: W&B lacks something); a new id where there is none yet."""
    try:
        found = json.loads((folder / MARK).read_text(encoding="utf-8"))
        return {"id": found["id"], "digest": found["digest"]}
    except (OSError, ValueError, KeyError):
        return {"id": uuid.uuid4().hex[:12], "digest": None}


def write(folder: Path, run_id: str, digest: str | None) -> None:
    """Replace the mark of `folder`."""
    write_json(folder / MARK, {"id": run_id, "digest": digest})


def digest(folder: Path, project: str, entity: str | None) -> str:
    """Of everything that is sent, and of where to."""
    found = hashlib.sha256(json.dumps([project, entity, os.environ.get("WANDB_BASE_URL")]).encode())
    for name in ("config.yaml", METRICS, ALLOCATIONS, SUMMARY):
        path = folder / name
        found.update(hashlib.sha256(path.read_bytes() if path.exists() else b"").digest())
    return found.hexdigest()
