"""The saving benchmark runs, at a size that takes seconds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the benchmark reads Linux's resource usage")
def test_a_small_model_is_measured(tmp_path):
    words = [
        "--layers",
        "1",
        "--width",
        "64",
        "--steps",
        "4",
        "--seconds",
        "0",
        "--json",
        str(tmp_path / "saving.json"),
    ]
    done = subprocess.run(
        [sys.executable, "experiments/bench/saving.py", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "saving.json").read_text())
    assert found["dtype"] == {"base": None, "trained": "fp32", "compute": "fp32"}
    assert found["live_gib"] < found["peak_gib"] < 3
