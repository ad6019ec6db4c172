"""One run, or a sweep with -m: python experiments/run.py method=adalora model=minilm_l6 task=rotten_tomatoes rank=8."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # lets a checkout run without installation

from adarank.harness.app import main

if __name__ == "__main__":
    sys.exit(main())
