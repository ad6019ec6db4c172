"""Gather the summaries of a sweep's finished runs into one file that can be committed.

python experiments/collect.py runs/demo experiments/results/quickstart.json
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from adarank.harness.files import write_json


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder of the runs")
    parser.add_argument("file", type=Path, help="the JSON file to write")
    options = parser.parse_args()
    found = {
        p.parent.name: json.loads(p.read_text(encoding="utf-8")) for p in sorted(options.out.glob("*/summary.json"))
    }
    finished = {name: summary for name, summary in found.items() if summary["status"] == "finished"}
    if not finished:
        print(f"error: OUT={options.out} holds no finished run; valid: a folder of run folders", file=sys.stderr)
        return 2
    write_json(options.file, finished)
    print(f"{len(finished)} runs -> {options.file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
