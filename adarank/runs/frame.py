"""Runs as pandas DataFrames, from run folders and packed results alike. docs/runs.md describes the columns."""

import heapq
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from adarank.errors import SettingError
from adarank.runs import allocations, packed, predictions, settings
from adarank.runs.files import ALLOCATIONS, METRICS, STATUS, SUMMARY, read_lines, read_object
from adarank.runs.modules import place_of
from adarank.runs.status import run_folders, state_of

if TYPE_CHECKING:
    import pandas

KEYS = ("run", "method", "arm", "model", "task", "seed")  # identify a run; the first columns of every kind of table
RUN = (*KEYS, "targets", "state", "error")
METRIC = ("name", "higher_is_better", "best", "best_step", "last", "test", "test_last", "majority")
COSTS = {
    "parameters": ("total", "trainable", "adapter", "kept"),
    "time": ("train_s", "eval_s", "step_ms", "rows_per_s", "tokens_per_s"),
    "memory": ("peak_mib",),
}
RESULTS = (
    *(f"metric.{name}" for name in METRIC),
    *(
        f"rank.{name}"
        for name in ("initial_mean", "final_mean", "final_min", "final_max", "triplets", "budget_triplets")
    ),
    *(f"{part}.{name}" for part, names in COSTS.items() for name in names),
    "device",
)
COLUMNS = {
    "metrics": (*KEYS, "step", "split"),
    "allocations": (*KEYS, "step", "budget", "unit", "kept", "parameters", "slack", "mean_rank"),
    "ranks": (*KEYS, "step", "module", "block", "kind", "rank"),
    "predictions": (*KEYS, "checkpoint", "row", "label", "prediction", "score"),
}
KINDS = ("runs", *COLUMNS)
TEXTS = {
    *KEYS[:-1],
    "targets",
    "state",
    "error",
    "split",
    "unit",
    "module",
    "kind",
    "checkpoint",
    "metric.name",
    "device",
}
NUMBERS = {name for names in (("seed",), RESULTS, *COLUMNS.values()) for name in names} - TEXTS
VALUES = ("label", "prediction", "score")
CHECKPOINTS = {"last": "", "best": predictions.BEST}  # {checkpoint: the suffix of its columns in predictions.npz}
Part = tuple[dict[str, Any], dict[str, list[Any]]]  # (the keys of a run, columns of some rows)


@dataclass(frozen=True)
class Run:
    """One run. summary, settings: {} if it has none; the other fields are functions that read its files when called."""

    name: str
    state: str
    error: str | None
    summary: Mapping[str, Any]
    settings: Mapping[str, Any]
    metrics: Callable[[], list[dict[str, Any]]]
    allocations: Callable[[], list[dict[str, Any]]]
    predictions: Callable[[], Mapping[str, np.ndarray]]

    @property
    def keys(self) -> dict[str, Any]:
        """The values of KEYS; for a run without a summary, from its settings."""
        known = {**self.settings, **{key: value for key, value in self.summary.items() if value is not None}}
        seed = re.search(r"-s(\d+)$", self.name)
        return {
            "seed": int(seed[1]) if seed else None,
            **{key: known[key] for key in KEYS if key in known},
            "run": self.name,
        }


def frame(out: Path | str, kind: str = "runs") -> "pandas.DataFrame":
    """The runs below the folder `out`, at any depth, as a DataFrame. It covers run folders (finished, failed or
    running) and packed runs.

    kind: "runs" has one row per run, with its typed settings, results and costs; "metrics" one row per record of
    metrics.jsonl; "allocations" one row per allocation; "ranks" one row per module and allocation; "predictions" one
    row per test row and checkpoint. Without runs the table has its columns but no rows. Raises SettingError if `out` is
    not a folder, if `kind` is none of these, if pandas is not installed, or if a file that is only written as a whole
    is damaged.

    Example: frame("runs/demo").groupby("method")["metric.test_last"].agg(["mean", "std"])
    """
    if kind not in KINDS:
        raise SettingError(f"kind must be one of {', '.join(KINDS)} (got {kind})")
    if not Path(out).is_dir():
        raise SettingError(f"OUT must be a folder that holds runs (got {out})")
    _pandas()
    runs = _runs(Path(out))
    if kind == "runs":
        return _table([_run_row(run) for run in runs], RUN, RESULTS)
    if kind == "metrics":
        return _table([{**run.keys, **record} for run in runs for record in run.metrics()], COLUMNS[kind])
    if kind == "allocations":
        return _table([row for run in runs for row in _allocation_rows(run)], COLUMNS[kind])
    parts = _rank_parts(runs) if kind == "ranks" else _prediction_parts(runs)
    return _joined(list(parts), COLUMNS[kind][len(KEYS) :])


def _pandas() -> Any:
    try:
        import pandas
    except ImportError:
        raise SettingError(
            "adarank.frame needs the package pandas, which is not installed; pip install pandas"
        ) from None
    return pandas


def _runs(out: Path) -> Iterator[Run]:
    """The runs sorted by name, one at a time, so that thousands of packed runs are never in memory together. Of a run
    that is packed in place, the folder counts."""
    folders = dict.fromkeys(sorted(run_folders(out)))
    records = (found for found in packed.read_records(out) if found[0] not in folders)
    for place, record in heapq.merge(folders.items(), records, key=lambda found: found[0]):
        name = out.absolute().name if place == out else place.relative_to(out).as_posix()
        yield _folder_run(name, place) if record is None else _packed_run(name, record)


def _folder_run(name: str, folder: Path) -> Run:
    status, summary = (read_object(folder / file)[0] for file in (STATUS, SUMMARY))
    return Run(
        name=name,
        state=state_of(folder, status, summary),
        error=status.get("error"),
        summary=summary,
        settings=settings.read(folder) or {},
        metrics=lambda: read_lines(folder / METRICS)[0],
        allocations=lambda: allocations.read(folder / ALLOCATIONS)[0],
        predictions=lambda: predictions.read(folder),
    )


def _packed_run(name: str, record: Mapping[str, Any]) -> Run:
    return Run(
        name=name,
        state=packed.FINISHED,
        error=None,
        summary=record["summary"],
        settings=settings.flat(record["config"]),
        metrics=lambda: record["metrics"],
        allocations=lambda: packed.allocations_of(record),
        predictions=lambda: predictions.unpacked(record.get("predictions", {})),
    )


def _run_row(run: Run) -> dict[str, Any]:
    summary, keys = run.summary, run.keys
    parts = {part: summary.get(part) or {} for part in ("metric", "test", "parameters", "time", "memory")}
    return {
        **run.settings,
        **keys,
        "targets": summary.get("targets", run.settings.get("targets")),
        "state": run.state,
        "error": run.error,
        **settings.flat(parts),
        **{f"rank.{name}": value for name, value in _rank_summary(summary.get("rank") or {}).items()},
        "device": summary.get("device"),
    }


def _rank_summary(rank: Mapping[str, Any]) -> dict[str, Any]:
    """Statistics of the ranks over the modules, from `rank` of summary.json. In old runs `initial` holds the rank of
    every module."""
    initial, final = rank.get("initial"), list((rank.get("final") or {}).values())
    summarised = {
        "initial_mean": fmean(initial.values()) if isinstance(initial, dict) and initial else initial or None,
        "budget_triplets": rank.get("budget_triplets"),
    }
    if final:
        summarised |= {
            "final_mean": fmean(final),
            "final_min": min(final),
            "final_max": max(final),
            "triplets": sum(final),
        }
    return summarised


def _allocation_rows(run: Run) -> Iterator[dict[str, Any]]:
    for record in run.allocations():
        kept = {key: value for key, value in record.items() if key in COLUMNS["allocations"]}
        yield {**run.keys, **kept, "mean_rank": fmean(record["ranks"].values()) if record["ranks"] else None}


def _rank_parts(runs: Iterator[Run]) -> Iterator[Part]:
    """The ranks after every allocation; for a run that never allocates, its ranks at step 0."""
    place = cache(place_of)
    for run in runs:
        maps = [(record["step"], record["ranks"]) for record in run.allocations()]
        for step, ranks in maps or [(0, (run.summary.get("rank") or {}).get("final") or {})]:
            places = [place(module) for module in ranks]
            yield (
                run.keys,
                {
                    "step": [step] * len(ranks),
                    "module": list(ranks),
                    "block": [each.block for each in places],
                    "kind": [each.kind for each in places],
                    "rank": list(ranks.values()),
                },
            )


def _prediction_parts(runs: Iterator[Run]) -> Iterator[Part]:
    """The predictions of every checkpoint that has them; NaN for a missing column. Rows are counted from 1."""
    for run in runs:
        columns = run.predictions()
        for checkpoint, suffix in CHECKPOINTS.items():
            known = {name: columns[name + suffix] for name in VALUES if name + suffix in columns}
            if known:
                count = len(next(iter(known.values())))
                yield (
                    run.keys,
                    {
                        "checkpoint": [checkpoint] * count,
                        "row": list(range(1, count + 1)),
                        **{name: known[name].tolist() if name in known else [None] * count for name in VALUES},
                    },
                )


def _joined(parts: Sequence[Part], names: Sequence[str]) -> "pandas.DataFrame":
    """All parts as one table; each part's keys are repeated in front of its columns."""
    counts = [len(columns[names[0]]) for _, columns in parts]
    repeated = np.repeat(np.arange(len(parts)), counts)
    table = _table([keys for keys, _ in parts], KEYS).loc[repeated].reset_index(drop=True)
    for name in names:
        table[name] = _column(name, [value for _, columns in parts for value in columns[name]])
    return table


def _table(rows: Sequence[Mapping[str, Any]], first: Sequence[str], last: Sequence[str] = ()) -> "pandas.DataFrame":
    """The rows with the columns `first`, then all others in the order in which they appear, then `last`."""
    others = dict.fromkeys(name for row in rows for name in row if name not in first and name not in last)
    names = (*first, *others, *last)
    return _pandas().DataFrame({name: _column(name, [row.get(name) for row in rows]) for name in names})


def _column(name: str, values: Sequence[Any]) -> "pandas.Series[Any]":
    """The values as bool, int64, float64 or text, or as pandas' nullable type if integers or booleans are missing.
    Values of several types become text, as tables show them."""
    pandas = _pandas()
    known = [value for value in values if value is not None]
    types, whole = set(map(type, known)), len(known) == len(values)
    if not types:
        return pandas.Series(values, dtype="float64" if name in NUMBERS else object)
    if types == {bool}:
        return pandas.Series(values, dtype="bool" if whole else "boolean")
    if types == {int}:
        return pandas.Series(values, dtype="int64" if whole else "Int64")
    if types <= {int, float}:
        return pandas.Series(values, dtype="float64")
    return pandas.Series([None if value is None else settings.text(value) for value in values])
