"""A classifier with a loss, dropout and skewed inputs: what the inits that look at data need."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.conftest import Net


class Classifier(nn.Module):
    """Net with dropout and a loss. `dtype`: of the weights."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.net = Net()
        self.drop = nn.Dropout(0.5)
        with torch.no_grad():
            for i, layer in enumerate(self.net.layers):
                layer.up.weight.mul_(1 + i)  # so that layers differ
        self.to(dtype)

    def forward(self, x, labels=None):
        logits = self.net(self.drop(x))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SimpleNamespace(logits=logits, loss=loss)


def some_batches(count, rows=40, dtype=torch.float32, seed=1):
    """Batches (x [rows, 8], labels [rows]) whose x varies mostly in a few directions."""
    g = torch.Generator().manual_seed(seed)
    spread = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.5, 0.1, 0.05, 0.01])
    return [
        {
            "x": (torch.randn(rows, 8, generator=g) * spread + 1).to(dtype),
            "labels": torch.randint(3, (rows,), generator=g),
        }
        for _ in range(count)
    ]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Classifier()


@pytest.fixture
def batches():
    return some_batches(6)
