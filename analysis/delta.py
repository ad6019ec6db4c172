"""What became of the weights: a line for every run whose ΔW experiments/probe.py --delta has looked at."""

import json
from statistics import median
from typing import Any, NamedTuple

from analysis import formats
from analysis.files import number
from analysis.load import Run
from analysis.tables import Table

TITLE = "What became of the weights: ΔW, medians over its modules"
HEADER = ("run", "modules", "norm of ΔW, of W's", "rank", "effective rank", "stable rank", "amplification", "random",
          "intruders", "P off orthonormal", "Q off orthonormal")  # fmt: skip


class Module(NamedTuple):
    """One module's figures. sigma: ΔW's largest singular values; amplification, at_random: None where nothing changed;
    drift: of P and Q from orthonormal rows, None in full fine-tuning."""

    sigma: tuple[float, ...]
    relative_norm: float
    rank: float
    effective_rank: float
    stable_rank: float
    amplification: float | None
    at_random: float | None
    intruders: float
    drift: tuple[float, float] | None


class Delta(NamedTuple):
    """top: how many leading directions of a module were asked whether they intrude."""

    top: int
    modules: dict[str, Module]


def read(run: Run) -> Delta | None:
    """The run's delta.json; None where there is no such file to read."""
    try:
        found = json.loads((run.folder / "delta.json").read_bytes())
        modules = {str(name): _module(values) for name, values in found["modules"].items()}
        return Delta(int(found["top"]), modules) if modules else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def rows(table: Table) -> tuple[list[list[str]], list[list[Run]]]:
    """A row of strings for HEADER, and its run, of every run; none where no run of the table was looked at."""
    shown, runs = [], []
    for row in table.rows:
        for run in row.runs:
            if (delta := read(run)) is not None:
                shown.append([f"{table.labels[row]}, seed {run.seed}", *_cells(delta)])
                runs.append([run])
    return shown, runs


def _cells(delta: Delta) -> list[str]:
    modules = list(delta.modules.values())
    known = [m for m in modules if m.amplification is not None and m.at_random is not None]
    drifts = [m.drift for m in modules if m.drift is not None]
    return [
        str(len(modules)),
        formats.significant(median(m.relative_norm for m in modules)),
        formats.rank(sum(m.rank for m in modules) / len(modules)),
        formats.significant(median(m.effective_rank for m in modules)),
        formats.significant(median(m.stable_rank for m in modules)),
        formats.significant(median(m.amplification or 0.0 for m in known) if known else None),
        formats.significant(median(m.at_random or 0.0 for m in known) if known else None),
        f"{sum(m.intruders for m in modules):g} of {delta.top * len(modules)}",
        *(formats.significant(median(d[i] for d in drifts) if drifts else None) for i in (0, 1)),
    ]


def _module(values: dict[str, Any]) -> Module:
    """ValueError where a figure is missing or no number."""
    grown, drift = values["amplification"], values["orthogonality"]
    base = _number(values["base_norm"])
    return Module(
        sigma=tuple(_number(value) for value in values["singular_values"]),
        relative_norm=_number(values["norm"]) / base if base else 0.0,
        rank=_number(values["rank"]),
        effective_rank=_number(values["effective_rank"]),
        stable_rank=_number(values["stable_rank"]),
        amplification=None if grown is None else number(grown["factor"]),
        at_random=None if grown is None else number(grown["random"]),
        intruders=_number(values["intruders"]),
        drift=None if drift is None else (_number(drift["P"]), _number(drift["Q"])),
    )


def _number(value: object) -> float:
    found = number(value)
    if found is None:
        raise ValueError("not a finite number")
    return found
