"""Collects the summaries of finished runs, or another of their JSON files, in one file that can be committed.

    python experiments/collect.py runs/demo experiments/results/quickstart.json
    python experiments/collect.py runs/demo experiments/results/probe.json --name probe.json

It finds runs at any depth below OUT, as run folders or packed by experiments/pack.py, and names them by their path
below OUT.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from adarank.runs.files import SUMMARY, read_json, read_object, write_json
from adarank.runs.packed import FINISHED, read_records

LARGE = 64_000  # bytes; larger files are written without white space


def collect(out: Path, name: str = SUMMARY) -> dict[str, Any]:
    """{path of the run below `out`: content of its file `name`} for every finished run that has the file."""
    contents = {}
    for folder, record in read_records(out):
        if (content := {SUMMARY: record["summary"], **record.get("measures", {})}.get(name)) is not None:
            contents[folder.relative_to(out).as_posix()] = content
    for path in sorted(out.rglob(SUMMARY)):
        file = path.parent / name
        if read_object(path)[0].get("status") == FINISHED and file.is_file():
            contents[path.parent.relative_to(out).as_posix()] = read_json(file)
    return contents


def write_result(path: Path, value: Any) -> None:
    """Write a result file, indented if it is small enough for people to read."""
    write_json(path, value)
    if path.stat().st_size > LARGE:
        write_json(path, value, indent=None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder that holds the runs")
    parser.add_argument("file", type=Path, help="the JSON file to write")
    parser.add_argument("--name", default=SUMMARY, help=f"the file to gather from every run ({SUMMARY})")
    options = parser.parse_args()
    contents = collect(options.out, options.name)
    if not contents:
        valid = f"OUT must be a folder that holds finished runs with {options.name}"
        print(f"error: {valid} (got {options.out})", file=sys.stderr)
        return 2
    write_result(options.file, contents)
    print(f"{len(contents)} runs -> {options.file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
