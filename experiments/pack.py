"""Packs finished runs into small files that can be committed, one for each folder, and unpacks them into run folders.

    python experiments/pack.py pack runs/table1 experiments/results/table1
    python experiments/pack.py unpack experiments/results/table1 runs/table1

The file `runs.jsonl.xz` has a line for each run with its settings and summary (absolute paths cut to their last part),
metrics, allocations, the measurements of `adarank probe` except similarities (to seven digits, as many as fp32 has),
and the labels and predicted classes of test, but no weights, probabilities or quantiles of scores. The same runs always
give the same bytes. experiments/run.py skips an unpacked run as finished; analysis/ and `adarank.frame` read it like
any run.
"""

import argparse
import json
import lzma
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import yaml

from adarank.errors import SettingError
from adarank.runs import allocations, files, predictions
from adarank.runs.files import SUMMARY, read_json, read_object, write_text
from adarank.runs.lock import RunLocked, locked, waiting_for
from adarank.runs.packed import FILE, FINISHED, allocations_of, read_file, read_records

DIGITS = 7
MEASURES = (files.PROBE, files.PRUNING, files.DELTA, files.FORGETTING, files.PREFIXES)


def add_records(file: Path, records: Mapping[str, dict[str, Any]]) -> None:
    """Add {name: record} to a file of packed runs, or replace those of the same names, atomically."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with waiting_for(file.parent):  # other jobs of a study write to the same file
        write_records(file, {**dict(read_file(file)), **records})


def write_records(file: Path, records: Mapping[str, dict[str, Any]]) -> None:
    """Write {name: record} as a file of packed runs, atomically. The bytes depend on the records alone."""
    lines = (
        json.dumps({"run": name, **record}, separators=(",", ":"), allow_nan=False)
        for name, record in sorted(records.items())
    )
    files.write_bytes(file, lzma.compress("\n".join(lines).encode()))


def pack(out: Path, results: Path) -> list[Path]:
    """Pack every finished run below `out` into the same subfolder of `results`. Returns the folders that new and
    changed runs would have there if they were unpacked in place. A packed run gains the run's new measurements and
    otherwise does not change. Raises SettingError if `out` is itself a run, or a run's files cannot be read."""
    if (out / files.STATUS).is_file():
        raise SettingError(f"OUT must be a folder that holds runs (got {out}, which is a run)")
    new = []
    for parent in sorted({run.parent for run in runs_below(out)}):
        file = results / parent.relative_to(out) / FILE
        known, changed = dict(read_file(file)), {}
        for folder in sorted(status.parent for status in parent.glob(f"*/{files.STATUS}")):
            if read_object(folder / files.STATUS)[0].get("state") != FINISHED:
                continue
            record = known.get(folder.name) or packed(folder)
            if measures := {**record.get("measures", {}), **measured(folder)}:
                record = {**record, "measures": measures}
            if record != known.get(folder.name):
                changed[folder.name] = record
        if changed:
            add_records(file, changed)
        new += [file.parent / name for name in changed]
    return new


def runs_below(out: Path) -> list[Path]:
    """The run folders below `out`. Other processes may add and remove folders meanwhile."""
    return [Path(folder) for folder, _, names in os.walk(out) if files.STATUS in names]


def unpack(results: Path, out: Path) -> list[Path]:
    """Write a run folder below `out` for every packed run below `results` except finished ones and those that a process
    is training; returns the new ones. An unfinished folder is replaced, since the run was finished elsewhere."""
    new = []
    for place, record in read_records(results):
        folder = out / place.relative_to(results)
        if read_object(folder / files.STATUS)[0].get("state") == FINISHED:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with locked(folder) as lock:
                for path in (path for path in folder.iterdir() if path != lock):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                write_run(record, folder)
        except RunLocked:
            continue
        new.append(folder)
    return new


def packed(folder: Path) -> dict[str, Any]:
    """The record of a run's folder: metrics unchanged, config and summary without this machine's folders, `ranks` of
    allocations as arrays in the order of `modules`, predicted classes as `predictions.packed` has them. Raises
    SettingError for a run without config or summary."""
    if missing := [name for name in (files.CONFIG, SUMMARY) if not (folder / name).is_file()]:
        raise SettingError(f"{folder} is a finished run without {missing[0]}; restore the file, or delete the folder")
    records, _ = allocations.read(folder / files.ALLOCATIONS)
    predicted = predictions.packed(predictions.read(folder))
    return {
        "config": _without_folders(yaml.safe_load((folder / files.CONFIG).read_text(encoding="utf-8"))),
        "summary": _without_folders(read_json(folder / SUMMARY)),
        "metrics": files.read_lines(folder / files.METRICS)[0],
        "modules": list(records[0]["ranks"]) if records else [],
        "allocations": [
            {**{k: v for k, v in record.items() if k != allocations.QUANTILES}, "ranks": list(record["ranks"].values())}
            for record in records
        ],
        **({"predictions": predicted} if predicted else {}),
    }


def measured(folder: Path) -> dict[str, Any]:
    """{file name: content}, `rounded`, for those of MEASURES that the run's folder has. Raises SettingError for a
    damaged one."""
    contents = {}
    for path in (folder / name for name in MEASURES if (folder / name).is_file()):
        try:
            contents[path.name] = rounded(read_json(path))
        except ValueError:
            raise SettingError(f"{path} is damaged; delete it, or measure again with experiments/probe.py") from None
    return contents


def rounded(value: Any) -> Any:
    """JSON with every fraction rounded to DIGITS significant digits."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def write_run(record: dict[str, Any], folder: Path) -> None:
    """Write the files of a run's folder, status.json last, so that a half-written folder does not look like a finished
    run. predictions.npz has no scores."""
    write_text(folder / files.CONFIG, yaml.safe_dump(record["config"], sort_keys=False))
    write_text(folder / files.METRICS, "".join(map(files.json_line, record["metrics"])))
    write_text(folder / files.ALLOCATIONS, allocations.document(allocations_of(record)))
    if columns := predictions.unpacked(record.get("predictions", {})):
        predictions.write(folder, columns)
    for name, content in record.get("measures", {}).items():
        files.write_json(folder / name, content)
    files.write_json(folder / SUMMARY, record["summary"])
    files.write_json(folder / files.STATUS, {"state": FINISHED, "step": record["summary"]["steps"], "error": None})


def _without_folders(value: Any) -> Any:
    """`value` with absolute paths cut to their last component, since other machines share no more than that."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, words in (("pack", ("out", "results")), ("unpack", ("results", "out"))):
        command = commands.add_parser(name)
        for word in words:
            command.add_argument(word, type=Path)
    options = parser.parse_args()
    packs = options.command == "pack"
    source, target = (options.out, options.results) if packs else (options.results, options.out)
    try:
        if not source.is_dir():
            raise SettingError(f"{'OUT' if packs else 'RESULTS'} must be a folder that holds runs (got {source})")
        new = (pack if packs else unpack)(source, target)
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(new)} runs -> {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
