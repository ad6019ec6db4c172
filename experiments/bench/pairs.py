"""Ratios measured side by side: interleaved rounds with one ratio per round, their median and its interval."""

import argparse
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from adarank.runs.files import write_json


def interleave(measure: Mapping[str, Callable[[], float]], rounds: int, warmup: int) -> dict[str, list[float]]:
    """The seconds of every contender in every round, after `warmup` uncounted rounds; a round measures each once.

    The order alternates between rounds, so that no contender always follows the same one.
    """
    found: dict[str, list[float]] = {name: [] for name in measure}
    for i in range(warmup + rounds):
        names = list(measure) if i % 2 else list(measure)[::-1]
        for name in names:
            seconds = measure[name]()
            if i >= warmup:
                found[name].append(seconds)
    return found


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """The median of the paired ratios with its 95 % interval from order statistics (no distribution assumed)."""
    values = np.sort(np.asarray(ours) / np.asarray(theirs))
    n = len(values)
    half = 0.98 * math.sqrt(n)  # 1.96/2 · √n: binomial ranks around the median
    low, high = max(0, math.floor(n / 2 - half)), min(n - 1, math.ceil(n / 2 + half))
    return {"median": float(np.median(values)), "low": float(values[low]), "high": float(values[high])}


def parser(description: str | None) -> argparse.ArgumentParser:
    """The parser for a benchmark, with --json."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", type=Path, help="write the findings to this file")
    return options


def write(options: argparse.Namespace, names: Sequence[str], /, **findings: Any) -> None:
    """With --json, write the machine, the values of the options `names` and the findings, and print the file's name."""
    if options.json:
        write_json(options.json, {"machine": machine(), **{key: getattr(options, key) for key in names}, **findings})
        print(options.json)


def machine() -> dict[str, Any]:
    """The machine that measured, without host names."""
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    names = ("torch", "transformers", "peft", "numpy")
    return {
        "cpu": cpu,
        "architecture": platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
    }
