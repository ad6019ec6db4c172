"""Measures a finished run's weights: `python experiments/probe.py RUN …` is the command `adarank probe RUN …`.

The options and the files they write are described in adarank/probe/cli.py (--help) and docs/probes.md.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from adarank.probe.cli import main

if __name__ == "__main__":
    sys.exit(main())
