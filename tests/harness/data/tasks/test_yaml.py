"""conf/task against the loaders: every parameter is listed, with the loader's own default, and typed."""

import inspect
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from adarank.harness.config.validate import conf_folder, locate
from adarank.harness.data.tasks.glue import SOURCES

FILES = sorted((conf_folder() / "task").glob("*.yaml"))
OWN = {  # what a loader leaves to the YAML
    "glue": {"name", "max_length"},
    "squad": {"name"},
    "summaries": {"name", "text", "summary", "max_tokens", "max_new_tokens", "beams"},
}


def test_every_task_has_its_yaml():
    names = {path.stem for path in FILES}
    assert names >= {"rotten_tomatoes", "imdb", "files", "hub", *SOURCES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_yaml_lists_its_loaders_parameters(path):
    node = OmegaConf.to_container(OmegaConf.load(path))
    function = locate(node.pop("_target_"))
    parameters = inspect.signature(function).parameters
    assert list(node) == list(parameters)
    assert set(typing.get_type_hints(function)) == {*parameters, "return"}
    for name, parameter in parameters.items():
        if name not in OWN.get(function.__name__, set()):
            assert node[name] == ("???" if parameter.default is parameter.empty else parameter.default)
    if function.__name__ == "glue":
        assert node["name"] == path.stem


def test_checking_a_tasks_settings_imports_nothing_heavy():
    targets = [OmegaConf.load(path)["_target_"] for path in FILES]
    heavy = ("torch", "transformers", "pandas", "pyarrow", "datasets", "sklearn", "scipy")
    code = (
        "import sys; from adarank.harness.config.validate import locate; "
        f"[locate(t) for t in {targets}]; print([m for m in {heavy} if m in sys.modules])"
    )
    root = Path(__file__).parents[4]
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert out.stdout.strip() == "[]"
