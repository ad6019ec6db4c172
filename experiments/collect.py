"""Gather the summaries of a sweep's finished runs, or another file of theirs, into one file that can be committed.

python experiments/collect.py runs/demo experiments/results/quickstart.json
python experiments/collect.py runs/demo experiments/results/probe.json --name probe.json
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from adarank.harness.files import write_json


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder of the runs")
    parser.add_argument("file", type=Path, help="the JSON file to write")
    parser.add_argument("--name", default="summary.json", help="which file of every run (summary.json)")
    options = parser.parse_args()
    folders = [path.parent for path in sorted(options.out.glob("*/summary.json")) if read(path)["status"] == "finished"]
    finished = {folder.name: read(folder / options.name) for folder in folders if (folder / options.name).is_file()}
    if not finished:
        print(
            f"error: OUT={options.out} holds no finished run with {options.name}; valid: a folder of run folders",
            file=sys.stderr,
        )
        return 2
    write_json(options.file, finished)
    print(f"{len(finished)} runs -> {options.file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
