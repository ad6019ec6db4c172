"""Finished runs as one small JSON file each, that can be committed, and back again as run folders.

    python experiments/pack.py pack runs/table1 experiments/results/table1
    python experiments/pack.py unpack experiments/results/table1 runs/table1

A packed run holds its settings (folders by their last name only), summary, metrics, allocations and what experiments/probe.py
measured of it (but for similarities); not its weights, nor the scores' quantiles. What is unpacked is skipped by experiments/run.py as finished, and analysis/ reads it like any other run.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import yaml

from adarank.errors import SettingError
from adarank.harness.files import write_json, write_text

FINISHED = "finished"
MEASURES = ("probe.json", "delta.json", "forgetting.json")


def pack(out: Path, results: Path) -> list[Path]:
    """Write a file below `results` for every finished run below `out`, in the same sub-folders; those that are there gain
    what was measured of their run since, and stay as they are otherwise. Returns the files written."""
    new = []
    for status in sorted(out.rglob("status.json")):
        folder = status.parent
        file = results / folder.parent.relative_to(out) / f"{folder.name}.json"
        if _read(status).get("state") != FINISHED:
            continue
        known = _read(file) if file.exists() else packed(folder)
        measures = {**known.get("measures", {}), **measured(folder)}
        record = {**known, "measures": measures} if measures else known
        if file.exists() and record == known:
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, record)
        new.append(file)
    return new


def unpack(results: Path, out: Path) -> list[Path]:
    """Make a run folder below `out` of every file below `results`; folders that are there stay as they are. Returns the
    new ones."""
    new = []
    for file in sorted(results.rglob("*-s*.json")):
        folder = out / file.parent.relative_to(results) / file.stem
        if folder.exists():
            continue
        folder.mkdir(parents=True)
        unpacked(json.loads(file.read_text(encoding="utf-8")), folder)
        new.append(folder)
    return new


def packed(folder: Path) -> dict[str, Any]:
    """What is kept of a run: summary and metrics as they are, config without this machine's folders, allocations as one list
    of ranks a record."""
    allocations = _lines(folder / "allocations.jsonl")
    modules = list(allocations[0]["ranks"]) if allocations else []
    return {
        "config": _anywhere(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))),
        "summary": _read(folder / "summary.json"),
        "metrics": _lines(folder / "metrics.jsonl"),
        "modules": modules,
        "allocations": [
            {**{k: v for k, v in record.items() if k != "score_quantiles"}, "ranks": list(record["ranks"].values())}
            for record in allocations
        ],
    }


def measured(folder: Path) -> dict[str, Any]:
    """{file's name: its content} of those of MEASURES that the run's folder has. Raises SettingError for one that is damaged."""
    found = {}
    for path in (folder / name for name in MEASURES if (folder / name).is_file()):
        try:
            found[path.name] = _read(path)
        except ValueError:
            raise SettingError(
                f"{path} cannot be read; valid: the file as experiments/probe.py writes it, or none"
            ) from None
    return found


def unpacked(record: dict[str, Any], folder: Path) -> None:
    """Write the files of a run folder; status.json last, so that a half-written folder is not taken for a finished run."""
    allocations = [
        {**kept, "ranks": dict(zip(record["modules"], kept["ranks"], strict=True))} for kept in record["allocations"]
    ]
    write_text(folder / "config.yaml", yaml.safe_dump(record["config"], sort_keys=False))
    for name, lines in (("metrics", record["metrics"]), ("allocations", allocations)):
        write_text(folder / f"{name}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    for name, content in record.get("measures", {}).items():
        write_json(folder / name, content)
    write_json(folder / "summary.json", record["summary"])
    write_json(folder / "status.json", {"state": FINISHED, "step": record["summary"]["steps"], "error": None})


def _anywhere(value: Any) -> Any:
    """`value` with absolute paths cut to their last name: they say something of the machine and nothing of the result."""
    if isinstance(value, dict):
        return {key: _anywhere(inside) for key, inside in value.items()}
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, words in (("pack", ("out", "results")), ("unpack", ("results", "out"))):
        command = commands.add_parser(name)
        for word in words:
            command.add_argument(word, type=Path)
    options = parser.parse_args()
    source = options.out if options.command == "pack" else options.results
    if not source.is_dir():
        print(f"error: {source} is not a folder; valid: one that holds runs", file=sys.stderr)
        return 2
    try:
        new = (pack if options.command == "pack" else unpack)(
            source, options.results if source is options.out else options.out
        )
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(new)} runs -> {options.results if source is options.out else options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
