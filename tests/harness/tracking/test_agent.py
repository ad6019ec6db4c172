"""A sweep that W&B's agent drives: the recipe of docs/sweeps.md, with the command line that the agent itself makes of
it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.experiments.test_run import inside

ROOT = Path(__file__).parents[3]
RECIPE = yaml.safe_load(re.search(r"```yaml\n(program: .*?)```", (ROOT / "docs" / "sweeps.md").read_text(), re.S)[1])


def command(parameters: dict) -> list[str]:
    """What the agent starts for one choice of parameters."""
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")  # takes seconds
    words = utils.create_sweep_command(list(RECIPE["command"]))
    values = utils.create_sweep_command_args({"args": {name: {"value": v} for name, v in parameters.items()}})
    values |= {"env": ["/usr/bin/env"], "interpreter": [sys.executable], "program": [RECIPE["program"]]}
    out = []
    for word in words:
        name = re.fullmatch(r"\$\{(\w+)\}", word)
        out += values[name[1]] if name else [word]
    return out


@pytest.mark.slow
def test_an_agent_s_run_is_one_trial_of_its_sweep(tmp_path):
    """The run takes the id that the agent chose, and reports the metric that the recipe optimises."""
    parameters = {"train.lr": 0.003, "rank": 2, "method": "lora", "tiny": True}
    assert set(RECIPE["parameters"]) <= {*parameters, "seed"}
    variables = {"WANDB_SWEEP_ID": "s1", "WANDB_RUN_ID": "run1", "WANDB_MODE": "offline", "WANDB_PROJECT": "theirs"}
    words = [*command(parameters), f"out={tmp_path / 'out'}"]
    environment = {**os.environ, **variables, "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Ignoring" not in done.stdout + done.stderr
    (folder,) = (tmp_path / "out").iterdir()
    assert json.loads((folder / ".wandb.json").read_text())["id"] == "run1"
    assert yaml.safe_load((folder / "config.yaml").read_text())["train"]["lr"] == 0.003
    assert len(list((folder / "wandb").glob("offline-run-*-run1/run-run1.wandb"))) == 1
    assert RECIPE["metric"] == {"name": "best", "goal": "maximize"}


def test_settings_with_hyphens_are_refused_in_a_sentence(tmp_path):
    """Which is what the agent makes of ${args}, its default."""
    done = inside("--train.lr=0.003", "method=lora", f"out={tmp_path / 'out'}", status=2)
    assert done.stderr == (
        "error: --train.lr=0.003 must be written without hyphens, as train.lr=0.003 (in a W&B sweep, use "
        "${args_no_hyphens} instead of ${args})\n"
    )
    assert not (tmp_path / "out").exists()
