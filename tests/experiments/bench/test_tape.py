"""A replayed step is the eager step bit for bit, and what a CUDA graph would freeze or refuse is noticed."""

import pytest
import torch
from torch import nn

from experiments.bench.tape import Tape

STEPS, RATES = 6, torch.linspace(1e-2, 1e-3, 6)


def parts(lr):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3))
    return model, torch.optim.AdamW(model.parameters(), lr=lr, fused=True)


def batches():
    draw = torch.Generator().manual_seed(1)
    return [(torch.randn(4, 5, generator=draw), torch.randint(0, 3, (4,), generator=draw)) for _ in range(STEPS)]


def train(model, optimizer, x, y):
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.detach()


def eager(lr):
    model, optimizer = parts(lr)
    losses = []
    for rate, batch in zip(RATES, batches(), strict=True):
        set_rate(optimizer, rate)
        losses.append(train(model, optimizer, *batch).item())
        optimizer.zero_grad()
    return losses, list(model.parameters())


def replayed(lr):
    model, optimizer = parts(lr)
    (x, y), *_ = batches()
    losses, tape = [], Tape()
    for i, (rate, batch) in enumerate(zip(RATES, batches(), strict=True)):
        set_rate(optimizer, rate)
        x.copy_(batch[0]), y.copy_(batch[1])
        if i == 0:  # makes the optimiser's state
            losses.append(train(model, optimizer, x, y).item())
            optimizer.zero_grad()
        elif i == 1:
            with tape.recording():
                loss = train(model, optimizer, x, y)
            losses.append(loss.item())
        else:
            tape.replay()
            losses.append(loss.item())
    assert not tape.syncs
    return losses, list(model.parameters())


def set_rate(optimizer, rate):
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].copy_(rate)
        else:
            group["lr"] = rate.item()


def test_replays_are_the_eager_step_bit_for_bit():
    losses, weights = eager(torch.tensor(1e-2))
    again, replayed_weights = replayed(torch.tensor(1e-2))
    assert losses == again
    assert all(torch.equal(a, b) for a, b in zip(weights, replayed_weights, strict=True))


def test_a_learning_rate_that_is_a_float_stays_what_it_was():
    weights, frozen = eager(1e-2)[1], replayed(1e-2)[1]
    assert not all(torch.equal(a, b) for a, b in zip(weights, frozen, strict=True))


@pytest.mark.parametrize(
    ("name", "work"),
    [
        ("_local_scalar_dense", lambda x: x.sum().item()),
        ("nonzero", lambda x: (x > 0).nonzero()),
        ("index", lambda x: x[x > 0]),
        ("index_put_", lambda x: x.__setitem__(x > 0, torch.zeros(()))),
        ("masked_select", lambda x: x.masked_select(x > 0)),
        ("equal", lambda x: torch.equal(x, x)),
    ],
)
def test_synchronisations_are_listed(name, work):
    tape = Tape()
    with tape.recording():
        work(torch.arange(-3.0, 3.0))
    assert name in tape.syncs


def test_views_and_allocations_are_not_repeated_and_random_numbers_are_drawn_again():
    x, tape = torch.zeros(6), Tape()
    with tape.recording():
        noise = torch.rand(2, 3)
        kept = torch.empty(3)
        kept.copy_(x.view(2, 3)[1])
        total = noise + kept
    first = noise.clone()
    x.fill_(1.0)
    torch.manual_seed(7)
    tape.replay()
    torch.manual_seed(7)
    assert torch.equal(noise, torch.rand(2, 3))
    assert not torch.equal(noise, first)
    assert torch.equal(total, noise + 1)
