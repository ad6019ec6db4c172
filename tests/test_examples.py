"""The examples in the docstrings of the public API run and print what they say."""

import doctest
from importlib import import_module

import pytest

import adarank

MODULES = {
    *(f"adarank.{home}" for home in adarank._HOME.values()),
    *("adarank.targets", "adarank.runs.modules", "adarank.penalties"),
}
WITH_EXAMPLE = (
    *("adapt", "ranks", "reach", "trainable_parameters", "merge", "disabled", "save_adapter", "compress"),
    *("to_peft", "from_peft"),
)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_examples_run(name):
    assert doctest.testmod(import_module(name)).failed == 0


def test_the_public_api_has_examples():
    assert [name for name in WITH_EXAMPLE if ">>> " not in getattr(adarank, name).__doc__] == []
    for name, of in (("unmerge", "merge"), ("load_adapter", "save_adapter")):
        assert f"See `{of}` for an example." in getattr(adarank, name).__doc__
