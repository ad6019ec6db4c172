"""PEFT runs in a process of its own, once for all cases."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SIDE = Path(__file__).with_name("peft_side.py")


def run_side(command: str, folder: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    done = subprocess.run([sys.executable, SIDE, command, folder], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """The folder of adapters that PEFT made: made / case / {base, adapter, inputs.safetensors, logits.safetensors}."""
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("made")
    run_side("make", folder)
    return folder
