"""The change ΔW of the weights, with one line per run that experiments/probe.py --delta has analysed."""

from collections.abc import Iterable
from statistics import median
from typing import Any, NamedTuple

from adarank.runs.files import DELTA
from analysis import formats
from analysis.load import Run, finite, number, read_measurement
from analysis.rows import Row
from analysis.tables import Lines, Table, lines_per_run

TITLE = "The weight change ΔW: medians over its modules (rank: their mean; intruders: their sum)"
HEADER = ("run", "modules", "norm of ΔW, of W's", "rank", "effective rank", "stable rank", "amplification", "random",
          "intruders", "P off orthonormal", "Q off orthonormal")  # fmt: skip


class Module(NamedTuple):
    """Measurements of one module. sigma: ΔW's largest singular values; norm: ‖ΔW‖ (Frobenius); relative_norm: ‖ΔW‖ of
    ‖W‖; amplification, at_random: None if nothing changed; drift: the deviation of P and Q from orthonormal rows, None
    for full fine-tuning."""

    sigma: tuple[float, ...]
    norm: float
    relative_norm: float
    rank: float
    effective_rank: float
    stable_rank: float
    amplification: float | None
    at_random: float | None
    intruders: float
    drift: tuple[float, float] | None


class WeightChange(NamedTuple):
    """top: the number of leading directions per module that were tested for being intruders."""

    top: int
    modules: dict[str, Module]


def read(run: Run) -> WeightChange | None:
    """The run's delta.json; None if there is none that can be read."""
    return read_measurement(run, DELTA, _parse)


def by_row(rows: Iterable[Row]) -> dict[Row, list[WeightChange]]:
    """The weight changes of each row's runs; rows without any are omitted."""
    changes = {row: [change for run in row.runs if (change := read(run)) is not None] for row in rows}
    return {row: several for row, several in changes.items() if several}


def rows(table: Table) -> Lines:
    """A line for HEADER for every analysed run."""
    return lines_per_run(table, lambda run: [_cells(change)] if (change := read(run)) is not None else [])


def _cells(change: WeightChange) -> list[str]:
    modules = list(change.modules.values())
    amplified = [m for m in modules if m.amplification is not None and m.at_random is not None]
    drifts = [m.drift for m in modules if m.drift is not None]
    return [
        str(len(modules)),
        formats.significant(median(m.relative_norm for m in modules)),
        formats.rank(sum(m.rank for m in modules) / len(modules)),
        formats.significant(median(m.effective_rank for m in modules)),
        formats.significant(median(m.stable_rank for m in modules)),
        formats.significant(median(m.amplification or 0.0 for m in amplified) if amplified else None),
        formats.significant(median(m.at_random or 0.0 for m in amplified) if amplified else None),
        f"{sum(m.intruders for m in modules):g} of {change.top * len(modules)}",
        *(formats.significant(median(d[i] for d in drifts) if drifts else None) for i in (0, 1)),
    ]


def _parse(content: Any) -> WeightChange | None:
    modules = {str(name): _parse_module(values) for name, values in content["modules"].items()}
    return WeightChange(int(content["top"]), modules) if modules else None


def _parse_module(values: dict[str, Any]) -> Module:
    amplification, drift = values["amplification"], values["orthogonality"]
    base = finite(values["base_norm"])
    return Module(
        sigma=tuple(finite(value) for value in values["singular_values"]),
        norm=finite(values["norm"]),
        relative_norm=finite(values["norm"]) / base if base else 0.0,
        rank=finite(values["rank"]),
        effective_rank=finite(values["effective_rank"]),
        stable_rank=finite(values["stable_rank"]),
        amplification=None if amplification is None else number(amplification["factor"]),
        at_random=None if amplification is None else number(amplification["random"]),
        intruders=finite(values["intruders"]),
        drift=None if drift is None else (finite(drift["P"]), finite(drift["Q"])),
    )
