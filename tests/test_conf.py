"""A contract over every YAML in every group: it composes, and the settings it lists are its function's."""

import inspect
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from adarank.harness.config.compose import spec_from
from adarank.harness.config.spec import GROUPS, PASSED, locate
from adarank.harness.config.validate import conf_folder
from tests.representatives import representatives

CONF = conf_folder()
FILES = sorted(p for p in CONF.rglob("*.yaml") if p.parent != CONF)


def choice(path):
    """(group, option) of a file; an experiment in a sub-folder keeps the folder's name."""
    parts = path.relative_to(CONF).with_suffix("").parts
    depth = 1 if parts[0] == "experiment" else len(parts) - 1
    return "/".join(parts[:depth]), "/".join(parts[depth:])


# what a recipe includes by task is no option by itself; tests/experiments/test_papers.py has it with its recipe
OPTIONS = [choice(path) for path in FILES if path.parent.parent.name != "recipe_by_task"]
NEEDS = {  # what an option cannot do without
    ("model", "local"): ["model.path=/m"],
    ("model", "hub"): ["model.name=m"],
    ("task", "files"): ["task.path=/d"],
    ("task", "hub"): ["task.name=d"],
    **{("task", name): ["task.path=/d"] for name in ("commonsense", "e2e")},
    ("experiment", "paper/lora_table3"): ["task.path=/d"],
    **{("recipe", path.stem): ["task=cola"] for path in CONF.glob("recipe/*.yaml")},
    ("adapter", "none"): ["method=full"],
    **{("adapter", name): [f"method={name}"] for name in ("houlsby", "pfeiffer", "bitfit", "head")},
    ("init", "none"): ["method=full"],
    ("score", "none"): ["method=lora"],
    ("allocator", "none"): ["method=lora"],
    **{
        ("allocator", name): ["pruned_triplets=frozen", "max_rank_factor=2"]
        for name in ("grow", "prune_expand", "one_by_one")
    },
    ("schedule", "none"): ["method=lora"],
    ("schedule", "constant"): ["init_rank=8"],
    ("schedule", "growing"): ["init_rank=2", "pruned_triplets=frozen"],
}


FIRST = {option[0]: option for option in reversed(OPTIONS)}  # of each group
DEFAULT = [*FIRST.values(), *(("method", name) for name in ("dylora", "full", "houlsby", "increlora", "qlora", "sora"))]


@pytest.mark.parametrize(("group", "option"), representatives(OPTIONS, DEFAULT))
def test_every_option_settles(group, option):
    overrides = [f"{group}={option}", *NEEDS.get((group, option), [])]
    spec = spec_from(overrides)
    if group in ("method", "targets"):
        assert getattr(spec, group) == option


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.parent.name in GROUPS], ids=lambda p: f"{p.parent.name}/{p.stem}"
)
def test_a_yaml_lists_every_setting_of_its_function(path: Path):
    """Hydra refuses to override what the YAML does not list."""
    node = OmegaConf.to_container(OmegaConf.load(path))
    if node["_target_"] is None:
        assert path.stem == "none"
        return
    function = locate(node["_target_"])
    parameters = inspect.signature(function).parameters
    settings = set(parameters) - PASSED.get(path.parent.name, set())
    assert set(node) - {"_target_"} == settings


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_yaml_says_what_it_is(path: Path):
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [line for line in lines if line.startswith("# ") and "@package" not in line]
    assert comments, "a comment at the head says what this option is"


def test_every_group_of_the_harness_has_its_folder():
    assert {p.parent.name for p in FILES} >= {*GROUPS, "method", "targets", "experiment"}
