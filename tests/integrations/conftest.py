"""PEFT runs in a process of its own, one for all that it has to do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SIDE = Path(__file__).with_name("peft_side.py")


@pytest.fixture(scope="session")
def run_side(tmp_path_factory):
    """Called with a command of peft_side.py and a folder; the process starts with the first test that needs it."""
    pytest.importorskip("peft")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    errors = tmp_path_factory.mktemp("side") / "errors.txt"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with errors.open("w") as file:
        process = subprocess.Popen([sys.executable, SIDE], stderr=file, env=environment, **pipes)

    def call(command: str, folder: Path) -> None:
        process.stdin.write(f"{command} {folder}\n")
        process.stdin.flush()
        assert "done\n" in iter(process.stdout.readline, ""), errors.read_text()[-3000:]

    yield call
    process.communicate()


@pytest.fixture(scope="session")
def made(run_side, tmp_path_factory):
    """The folder of adapters that PEFT made: made / case / {base, adapter, inputs.safetensors, logits.safetensors}."""
    folder = tmp_path_factory.mktemp("made")
    run_side("make", folder)
    return folder
