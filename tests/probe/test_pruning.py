"""Pruning by every order against brute force on a tiny network: triplets cut out by hand, and removed from memory."""

import copy
import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

import adarank
from adarank.adapters.lowrank import adapters_of
from adarank.controller import RankController
from adarank.errors import SettingError
from adarank.harness.config.spec import TrainConfig
from adarank.harness.data.batches import encode
from adarank.harness.data.task_types import classify
from adarank.harness.data.tasks.base import Split
from adarank.harness.models import tiny
from adarank.harness.run.distributed import Nothing
from adarank.harness.run.prepare import Prepared
from adarank.harness.run.train import train
from adarank.penalties import orthogonality
from adarank.probe import pruning
from tests.experiments.test_run import inside
from tests.probe.test_ablation import WORDS, loss_of

CONFIG = TrainConfig(lr=3e-2, steps=40, batch_size=4, precision="fp32", microbatches=1)


@dataclass(frozen=True)
class SpecLike:
    """The settings that training reads, without a task and a model on disk."""

    train: TrainConfig = CONFIG
    method: str = "adalora"
    seed: int = 0
    penalty: Any = orthogonality
    variant: str = "exact"
    score: Any = None
    quantization: Any = None
    compaction: str = "off"

    def takes(self, setting: str) -> bool:
        return False


@pytest.fixture
def setting():
    """(model, adapters, encoded rows, settings): two triplets in each of 12 modules, all of which matter."""
    torch.manual_seed(0)
    built = tiny("bert", width=32, layers=2).build(2)
    adapters = adarank.adapt(built.model, rank=2, targets="all-linear", train=built.head)
    with torch.no_grad():
        for adapter in adapters.values():
            adapter.P.normal_()
            adapter.lam.normal_()
    rows = encode(Split(WORDS, None, np.arange(len(WORDS)) % 2), built.tokenizer, 16)
    return built.model, adapters, rows, SpecLike()


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if torch.is_tensor(tensor)}


def cut(model, kept):
    """A copy of the model whose other triplets have no column any more."""
    other, place = copy.deepcopy(model), 0
    with torch.no_grad():
        for adapter in adapters_of(other).values():
            for i in range(adapter.rank):
                if place not in kept:
                    adapter.P[i] = 0.0
                place += 1
    return other


def test_the_highest_are_kept_and_of_equal_ones_the_first():
    assert pruning.highest([0.1, 0.3, -2.0, 0.3, 0.3], 2) == [1, 3]
    assert pruning.highest([-0.5, -0.1, -0.2], 1) == [1], "a signed score keeps what harms least"
    assert pruning.highest([-float("inf"), 1.0, -3.0], 2) == [1, 2]


def test_the_loss_after_pruning_is_that_of_a_model_whose_columns_are_gone(setting):
    model, adapters, rows, spec = setting
    before = state_of(model)
    for kept in ([0, 5, 6, 17], list(range(0, 24, 2)), list(range(24))):
        with pruning.pruned(adapters, kept):
            found = pruning.evaluated(model, rows, spec, "accuracy", classify)
        assert found["loss"] == pytest.approx(loss_of(cut(model, kept), rows), abs=1e-6)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state_of(model).items())


def test_every_step_of_the_stepwise_oracle_ablates_what_the_last_one_left(setting):
    model, adapters, rows, spec = setting
    whole = loss_of(model, rows)
    increase = [loss_of(cut(model, set(range(24)) - {i}), rows) - whole for i in range(24)]
    first = pruning.stepwise(model, adapters, rows, classify, len(rows), spec, increase, [])
    assert first == increase
    kept = pruning.highest(increase, 9)
    done = [{"order": pruning.ORACLE, "kept": [0]}, {"order": pruning.STEPWISE, "kept": kept}]
    found = pruning.stepwise(model, adapters, rows, classify, len(rows), spec, increase, done)
    left = loss_of(cut(model, kept), rows)
    for i, value in enumerate(found):
        expected = loss_of(cut(model, set(kept) - {i}), rows) - left if i in kept else -np.inf
        assert value == pytest.approx(expected, abs=1e-6)
    assert np.argsort(found)[-9:].tolist() != np.argsort(increase)[-9:].tolist(), "other triplets matter now"
    assert all(adapter.mask.all() for adapter in adapters.values())


def test_retraining_that_diverges_is_recorded_as_missing(setting):
    model, adapters, rows, spec = setting
    spec = replace(spec, train=replace(spec.train, lr=1e30))
    splits = {"train": rows, "dev": rows}
    found = pruning.pruned_and_trained(model, adapters, list(range(24)), splits, spec, "accuracy", classify, 6)
    assert found["loss"] == pytest.approx(loss_of(model, rows), abs=1e-6)
    assert (found["loss_after"], found["metric_after"]) == (None, None)


def test_retraining_is_that_of_a_model_from_which_the_pruned_triplets_are_removed(setting):
    """The same steps with the triplets compacted away: the frozen ones change neither loss nor penalty."""
    model, adapters, rows, spec = setting
    kept, splits, before = [0, 3, 4, 5, 9, 12, 20, 23], {"train": rows, "dev": rows}, state_of(model)
    with pruning.pruned(adapters, kept):
        found = pruning.pruned_and_trained(model, adapters, kept, splits, spec, "accuracy", classify, 6)
        trained = pruning.trained_on(model, splits, spec, "accuracy", classify, 6)
        compacted = copy.deepcopy(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state_of(model).items())
    adarank.compact(compacted)
    others = adapters_of(compacted)
    assert sum(adapter.rank for adapter in others.values()) == len(kept)
    controller = RankController(others, penalty=orthogonality())
    config = replace(CONFIG, steps=6, eval_every=6, log_every=6, warmup=3)
    used = replace(spec, train=config, seed=pruning.SEED_OFFSET)
    log = Nothing()
    train(Prepared(compacted, others, controller), splits, used, ["accuracy"], log, log.beat, lambda _: None)
    assert found["loss_after"] == pytest.approx(loss_of(compacted, rows), abs=1e-4)
    assert found["loss_after"] == pytest.approx(loss_of(trained, rows), abs=1e-6)
    assert abs(found["loss_after"] - found["loss"]) > 1e-3, "it was trained"
    for name, adapter in adapters_of(trained).items():
        assert torch.equal(adapter.lam[~adapter.mask], torch.zeros_like(adapter.lam[~adapter.mask])), name


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unpruned")
    words = ("tiny=true", "holdout=24", "train.lr=0.02", f"out={folder}")
    inside("method=svd_lora", "rank=1", *words)
    (found,) = folder.iterdir()
    return found


def measured(run, **changes):
    arguments = {"rows": 16, "passes": 1, "keep": [0.5, 0.25], "steps": 2, **changes}
    return pruning.measure(run, **arguments)


def test_a_run_is_pruned_by_every_score_at_every_size_and_goes_on_where_it_was_stopped(run, monkeypatch):
    once, calls = pruning.pruned_and_trained, []

    def stops(*arguments):
        calls.append(arguments[2])
        if len(calls) == 5:
            raise KeyboardInterrupt
        return once(*arguments)

    monkeypatch.setattr(pruning, "pruned_and_trained", stops)
    with pytest.raises(KeyboardInterrupt):
        measured(run)
    lines = (run / "pruning.jsonl").read_text().splitlines()
    found = measured(run)
    states = {(state["order"], state["triplets"]): state for state in found["states"]}
    by_losses = [pruning.ORACLE, pruning.WORST, pruning.STEPWISE, pruning.ABSOLUTE]
    orders = [pruning.UNPRUNED, *adarank.scores.__all__, *by_losses]
    assert list(dict.fromkeys(order for order, _ in states)) == orders
    assert len(states) == len(found["states"]) == 1 + 2 * (len(orders) - 1)
    assert json.loads(lines[1]) == found["states"][0]
    kept = [tuple(state["kept"]) for state in found["states"]]
    assert len(calls) == len(set(kept)) + 1, "what an order shares with another is not measured again"
    assert all(len(state["kept"]) == state["triplets"] for state in states.values())
    probe = json.loads((run / "probe.json").read_text())
    lowest = set(np.argsort(probe["scores"]["taylor"])[:6])
    assert lowest.isdisjoint(states["taylor", 6]["kept"]), "the signed score prunes its lowest values first"
    assert states["oracle", 6]["kept"] == states["oracle_stepwise", 6]["kept"], "its first step"
    assert set(states["worst_first", 6]["kept"]).isdisjoint(states["oracle", 6]["kept"])
    assert states["oracle_absolute", 6]["kept"] == sorted(np.argsort(np.abs(probe["rise"]))[6:])
    assert all(np.isfinite([state["loss"], state["loss_after"]]).all() for state in states.values())
    monkeypatch.setattr(pruning, "pruned_and_trained", lambda *_: pytest.fail("it was measured"))
    assert measured(run) == found


def test_an_order_is_judged_on_rows_that_it_has_not_seen(run):
    found = measured(run, steps=0)
    assert (found["seen"], found["rows"]) == (16, 8)
    assert {state["loss_after"] for state in found["states"]} == {None}
    probe = json.loads((run / "probe.json").read_text())
    assert found["states"][0]["loss"] != pytest.approx(probe["loss"], abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rows": 24}, r"--rows must be below 24, the rows of dev, whose others judge the orders \(got 24\)"),
        ({"steps": -1}, r"--retrain must be a whole number of at least 0 \(got -1\)"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(run, changes, says):
    with pytest.raises(SettingError, match=says):
        measured(run, **changes)


def test_a_run_that_has_pruned_is_refused(tmp_path):
    inside("method=adalora", "rank=1", "tiny=true", f"out={tmp_path}")
    (folder,) = tmp_path.iterdir()
    with pytest.raises(SettingError, match=r"--pruning needs a run that keeps all of its triplets, .* allocates ranks"):
        measured(folder)


@pytest.mark.parametrize("text", ["", "1", "0.5,0", "half"])
def test_shares_lie_between_nothing_and_all(text):
    with pytest.raises(SettingError, match=r"--keep must be shares of the triplets between 0 and 1"):
        pruning.shares(text)
    assert pruning.shares("0.25,0.5,0.25") == [0.5, 0.25]
