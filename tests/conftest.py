"""Shared by all tests: one thread, small models, the folder of shared data."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the suite runs one process a core
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("ADARANK_CACHE", "")  # no tokens are kept outside the tests' own folders
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
import yaml
from hypothesis import is_hypothesis_test, settings
from torch import nn

torch.set_num_threads(1)
yaml.SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the suite composes hundreds of configurations
settings.register_profile("few", deadline=None, max_examples=10)
settings.register_profile("full", deadline=None, max_examples=100)
settings.load_profile("few")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Property tests run by default with few examples, and with all of them among the slow tests."""
    if config.getoption("hypothesis_profile") == "full":
        for item in items:
            if is_hypothesis_test(getattr(item, "obj", None)):
                item.add_marker(pytest.mark.slow)


class Block(nn.Module):
    """A residual pair of linears, 12 -> 20 -> 12."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(12, 20)
        self.down = nn.Linear(20, 12)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(x)))


class Net(nn.Module):
    """Three blocks in a ModuleList and a head: what `adapt` sees of a transformer, in miniature."""

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 12)
        self.layers = nn.ModuleList(Block() for _ in range(blocks))
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def shared() -> Path:
    """The folder of shared data and golden cases; tests that need it skip where it is not there."""
    folder = os.environ.get("ADARANK_SHARED")
    if not folder or not Path(folder).is_dir():
        pytest.skip("ADARANK_SHARED names no folder of shared data")
    return Path(folder)


@pytest.fixture
def safe_bf16():
    """bf16 without oneDNN, whose kernels die on some CPUs."""
    with torch.backends.mkldnn.flags(enabled=False):
        yield
