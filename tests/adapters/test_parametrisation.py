"""A new parametrisation is one file: `adapt`, save, load, merge and the counts find it by its name."""

import pickle
from copy import deepcopy

import pytest
import torch
from torch import nn

import adarank
from adarank import adapters as room
from adarank.adapters.parametrisation import Parametrisation, find, lookup
from adarank.commands.inspect import report
from adarank.compression import compress_saved

# λ is trained, and the factors share the singular values evenly.
BALANCED = """
import torch
from adarank.adapters.parametrisation import Parametrisation

def split(V, sigma, U):
    root = sigma.pow(1 / 3).unsqueeze(1)
    return V * root, root.squeeze(1), U * root

def draw(adapter, part, factor, generator):
    return factor.zero_() if part == "P" else factor.normal_(generator=generator)

PARAMETRISATION = Parametrisation("balanced", learns_lambda=True, split=split, draw=draw)
"""

# The output of the adapted layer is scaled by g [d_out], which belongs to no triplet.
SCALED = """
from adarank.adapters import lora
from adarank.adapters.lowrank import LowRank
from adarank.adapters.parametrisation import Parametrisation

class Scaled(LowRank):
    def forward(self, x):
        return super().forward(x) * self.g if self.enabled else self.base(x)

    def delta(self):
        return (self.base.weight + super().delta()) * self.g.unsqueeze(1) - self.base.weight

def draw(adapter, part, factor, generator):
    return factor.fill_(1.0) if part == "g" else lora.PARAMETRISATION.draw(adapter, part, factor, generator)

PARAMETRISATION = Parametrisation(
    "scaled", False, lora.PARAMETRISATION.split, draw, Scaled, {"g": lambda d_in, d_out: (d_out,)}
)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder whose files count as files of adarank/adapters."""
    (tmp_path / "balanced.py").write_text(BALANCED)
    (tmp_path / "scaled.py").write_text(SCALED)
    monkeypatch.setattr(room, "__path__", [*room.__path__, str(tmp_path)])
    return tmp_path


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(6, 9, bias=False), nn.Linear(9, 6, bias=False)

    def forward(self, x):
        return self.down(torch.tanh(self.up(x)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Two()


def moved(adapters):
    with torch.no_grad():
        for adapter in adapters.values():
            for parameter in adapter.parameters(recurse=False):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return adapters


@pytest.mark.parametrize(("name", "inside"), [("balanced", 2 * 3 * 16), ("scaled", 2 * 3 * 15 + 9 + 6)])
def test_a_file_is_enough(folder, model, tmp_path, name, inside):
    x, fresh = torch.randn(5, 6), deepcopy(model)
    before = model(x)
    adapters = adarank.adapt(model, name, rank=3)
    torch.testing.assert_close(model(x), before)
    assert {a.kind for a in adapters.values()} == {name}
    assert {a.learns_lambda for a in adapters.values()} == {name == "balanced"}
    counts = adarank.trainable_parameters(model)
    assert counts["adapter"] == counts["kept"] == counts["trainable"] == inside
    moved(adapters)["up"].mask[1] = False
    assert adarank.trainable_parameters(model)["kept"] == inside - adapters["up"].triplet_cost
    model.eval()
    after = model(x)
    assert not torch.allclose(after, before, atol=1e-3)
    with adarank.disabled(model):
        torch.testing.assert_close(model(x), before)

    adarank.save_adapter(model, tmp_path / "saved")
    assert f"kind {name}" in report(tmp_path / "saved")
    loaded = adarank.load_adapter(fresh, tmp_path / "saved")
    assert {a.kind for a in loaded.values()} == {name}
    torch.testing.assert_close(fresh.eval()(x), after)
    adarank.merge(fresh)
    torch.testing.assert_close(fresh(x), after)
    assert all(type(m) is nn.Linear for m in (fresh.up, fresh.down))


def test_a_plain_one_is_compressed_and_exported(folder, model, tmp_path):
    moved(adarank.adapt(model, "balanced", rank=3))
    delta = {name: a.delta().detach() for name, a in adarank.adapters.lowrank.adapters_of(model).items()}
    adarank.compress(model, 6)
    for name, adapter in adarank.adapters.lowrank.adapters_of(model).items():
        torch.testing.assert_close(adapter.delta(), delta[name], rtol=1e-4, atol=1e-5)
    adarank.to_peft(model, tmp_path / "peft")
    for name, adapter in adarank.from_peft(Two(), tmp_path / "peft").items():
        torch.testing.assert_close(adapter.delta(), delta[name], rtol=1e-4, atol=1e-5)


def test_one_that_computes_more_than_a_low_rank_change_is_neither_compressed_nor_exported(folder, model, tmp_path):
    moved(adarank.adapt(model, "scaled", rank=3))
    with pytest.raises(adarank.SettingError, match="'scaled' is more than a low-rank"):
        adarank.compress(model, 4)
    with pytest.raises(adarank.SettingError, match="'scaled' is more than a low-rank"):
        compress_saved(*adarank.adapters.saving.adapter_state(model), 4)
    with pytest.raises(adarank.SettingError, match="'scaled' cannot be exported as a plain LoRA"):
        adarank.to_peft(model, tmp_path / "peft")


def test_one_that_is_defined_elsewhere_is_passed_as_it_is(model):
    svd = lookup("svd")
    own = Parametrisation("own", True, svd.split, lambda adapter, part, factor, generator: factor.fill_(0.5))
    adapters = adarank.adapt(model, own, rank=2)
    assert {a.kind for a in adapters.values()} == {"own"}
    assert all(p.eq(0.5).all() for a in adapters.values() for p in (a.Q, a.lam, a.P))
    deepcopy(model)


@pytest.mark.parametrize("kind", ["svd", "lora", "dora", "svd_dora", "matryoshka", "vera"])
def test_an_adapted_model_can_be_pickled(model, kind):
    """The parametrisations' own functions could not, since some are local to their files' functions."""
    adapters = adarank.adapt(model, kind, rank=2)
    again = pickle.loads(pickle.dumps(model))  # noqa: S301
    assert all(again.get_submodule(name).parametrisation is a.parametrisation for name, a in adapters.items())
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_every_parametrisation_splits_a_matrix_into_factors_of_it(folder):
    torch.manual_seed(0)
    U, sigma, Vt = torch.linalg.svd(torch.randn(5, 4, dtype=torch.float64), full_matrices=False)
    for name in ("svd", "lora", "dora", "svd_dora", "balanced", "scaled"):
        parametrisation = find(name)
        Q, lam, P = parametrisation.split(Vt, sigma, U.t())
        torch.testing.assert_close((P.t() * lam) @ Q, (U * sigma) @ Vt)
        assert parametrisation.learns_lambda or lam.eq(1).all()


@pytest.mark.parametrize("name", ["lowrank", "__init__", "..svd", "svd.x", "", None, 3])
def test_other_names_are_refused(folder, model, name):
    assert lookup(name) is None
    with pytest.raises(adarank.SettingError, match=r"^adapter must be one of .*lora, .*svd, .*balanced, scaled \(got "):
        adarank.adapt(model, name)
