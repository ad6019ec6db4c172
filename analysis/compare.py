"""Compares the finished runs of a folder: prints a table per model, task and targets, the rank maps and the answers,
and writes the report.

python analysis/compare.py OUT [--all]
"""

import sys
from pathlib import Path

if __package__ in (None, ""):  # as a script, sys.path[0] is analysis/ but must be the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from analysis.report import main

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:], show=True))
