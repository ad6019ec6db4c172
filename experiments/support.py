"""The versions that adarank works with: runs a fixed selection of the tests in this environment and records the result.

python experiments/support.py NAME    # writes experiments/results/support/NAME.json
python experiments/support.py         # prints the table of docs/support.md from the committed records

The selection contains the tests that depend on Python, torch, Transformers, PEFT and the packages of the report. Tests
marked slow or gpu are excluded, as in `make test`.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that a checkout runs without installation

from adarank.runs.files import read_json, write_json

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments" / "results" / "support"
SELECTION = (
    "tests/adapters",
    "tests/analysis/test_report.py",
    "tests/harness/run/test_execute.py",
    "tests/harness/test_models.py",
    "tests/integrations",
    "tests/test_adaptation.py",
    "tests/test_architectures.py",
    "tests/test_compaction.py",
    "tests/test_controller.py",
    "tests/test_graph_capture.py",
    "tests/test_optimizers.py",
    "tests/test_savers.py",
    "tests/test_targets.py",
)
PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "numpy", "scipy", "pandas", "safetensors")
HEADER = ("environment", "Python", "torch", "Transformers", "PEFT", "NumPy", "device", "passed", "skipped", "failed")


def run(name: str) -> dict[str, Any]:
    """Run the selection with this interpreter; returns the record."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-n", "0", "--tb=short", "--continue-on-collection-errors", "-p", "no:cacheprovider"]
        subprocess.run([sys.executable, "-m", "pytest", *options, f"--junitxml={report}", *SELECTION], cwd=ROOT)
        counts = count(ElementTree.parse(report).getroot())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
    return {
        "name": name,
        "python": platform.python_version(),
        "system": platform.system(),
        "device": device,
        "versions": {package: _version(package) for package in PACKAGES},
        **counts,
    }


def count(report: ElementTree.Element) -> dict[str, Any]:
    """{passed, skipped, failed: numbers of tests; failures: {test: first line of its failure}} from pytest's report."""
    passed, skipped, failures = 0, 0, {}
    for case in report.iter("testcase"):
        fault = next((part for part in case if part.tag in ("failure", "error")), None)
        if fault is not None:
            test = f"{case.get('classname', '')}::{case.get('name', '')}".removeprefix("::")
            failures[test] = fault.get("message", "").partition("\n")[0][:300]
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return {"passed": passed, "skipped": skipped, "failed": len(failures), "failures": failures}


def records() -> list[dict[str, Any]]:
    """The committed records, with the oldest Python and torch first."""

    def key(record: Mapping[str, Any]) -> list[list[int]]:
        versions = record["python"], *(record["versions"][package] for package in ("torch", "transformers"))
        return [[int(part) for part in text.partition("+")[0].split(".")] for text in versions]

    return sorted(map(read_json, RESULTS.glob("*.json")), key=key)


def table(found: Iterable[Mapping[str, Any]]) -> str:
    """The records as a Markdown table."""
    lines = [HEADER, ("---",) * len(HEADER)]
    for record in found:
        versions = [record["versions"][package] or "–" for package in ("torch", "transformers", "peft", "numpy")]
        counts = [f"{record[key]:,}" for key in ("passed", "skipped", "failed")]
        lines.append((record["name"], record["python"], *versions, record["device"], *counts))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help="name for this environment's record; without it, print the table")
    name = parser.parse_args().name
    if name is None:
        print(table(records()))
        return 0
    record = run(name)
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / f"{name}.json", record)
    print(json.dumps({key: record[key] for key in ("passed", "skipped", "failed")}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
