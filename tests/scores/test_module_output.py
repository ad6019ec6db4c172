"""LoRA-drop's score against dense weight changes times recorded inputs, and the modules that it keeps."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

import adarank
from adarank.adapters.lowrank import LowRank
from adarank.scores import module_output
from adarank.scores.module_output import mean_square
from tests.test_controller import run, setup

BETA = 0.7


@pytest.mark.parametrize("kind", ["svd", "lora"])
def test_it_is_the_mean_squared_output_of_the_module(kind):
    masked = {} if kind == "svd" else {"pruned_triplets": "masked"}
    net, adapters, controller, optimizer = setup(
        score=module_output(BETA), gamma=0.0, adapter=kind, dtype=torch.float64, **masked
    )
    average, seen = dict.fromkeys(adapters, 0.0), {}

    def recorder(name):
        def hook(adapter, inputs):
            seen.setdefault(name, []).append((adapter.delta().detach().numpy().copy(), inputs[0].detach().numpy()))

        return hook

    for name, adapter in adapters.items():
        adapter.register_forward_pre_hook(recorder(name))
    for t in range(5):
        seen.clear()
        run(net, controller, optimizer, [t], accumulation=2)
        for name, passes in seen.items():
            assert len(passes) == 2
            means = [np.mean([sum((W @ row) ** 2) for row in x]) for W, x in passes]
            average[name] = BETA * average[name] + (1 - BETA) * np.mean(means)
    expected = torch.tensor([average[name] for name in adapters for _ in range(4)], dtype=torch.float64)
    assert expected.unique().numel() == len(adapters)
    torch.testing.assert_close(controller.score.score(controller.buffers, controller.bank), expected)


@pytest.mark.parametrize(
    ("base", "x"),
    [
        (nn.Conv2d(3, 6, 3, stride=2, padding=1), torch.randn(2, 3, 8, 9)),
        (nn.Embedding(11, 6), torch.randint(0, 11, (2, 5))),
        (nn.Linear(5, 7), torch.randn(2, 3, 5)),
    ],
)
def test_on_every_kind_of_layer_it_is_the_size_of_what_the_module_adds(base, x):
    adapter = LowRank(deepcopy(base), "svd", rank=4, scale=1.7)
    for part in (adapter.Q, adapter.lam, adapter.P):
        nn.init.normal_(part)
    adapter.mask[1] = False
    added = (adapter.eval()(x) - base(x)).detach()
    rows = added.permute(0, 2, 3, 1) if added.ndim == 4 else added
    expected = np.mean([sum(row**2) for row in rows.reshape(-1, rows.shape[-1]).numpy()])
    torch.testing.assert_close(mean_square(adapter, x).detach(), torch.full((4,), float(expected)), rtol=1e-4, atol=0)


def test_global_top_then_keeps_whole_modules():
    torch.manual_seed(0)
    net, adapters, controller, optimizer = setup(
        score=module_output(), adapter="lora", pruned_triplets="frozen", lr=1e-1, gamma=0.0
    )
    run(net, controller, optimizer, range(40))
    assert sorted(adarank.ranks(net).values()) == [0, 0, 0, 4, 4, 4]
    assert len(adapters) == 6
