"""The files that experiments/probe.py leaves in a run's folder: which there are, and which of them cannot be read."""

from collections.abc import Callable
from typing import Any

from analysis import delta, forgetting, probe
from analysis.load import Run
from analysis.plots import similarity
from analysis.rows import Row

READERS: dict[str, Callable[[Run], Any]] = {  # what they give is false where the file is not what it should be
    "probe.json": probe.content,
    "delta.json": delta.read,
    "forgetting.json": forgetting.read,
    "similarity.json": lambda run: similarity.read(run, {}),
}


def unreadable(row: Row, label: str) -> list[str]:
    """A sentence for every such file that is there and is left out, as it cannot be read."""
    return [
        f"{name} of {label}, seed {run.seed}, cannot be read and is left out: {run.name}/{name}."
        for run in row.runs
        for name, read in READERS.items()
        if (run.folder / name).is_file() and not read(run)
    ]
