"""Every baseline, prepared as its YAML says, learns the letters of tests/harness/run/test_train.py."""

from dataclasses import replace

import pytest
import torch

import adarank
from adarank.adapters.bottleneck import bottlenecks_of
from adarank.harness.data.batches import encode
from adarank.harness.models import Built, tiny
from adarank.harness.run.prepare import prepare
from adarank.harness.run.train import train
from adarank.targets import resolve_targets
from tests.harness.config.test_validate import settled
from tests.harness.run.test_train import Recorder, letters
from tests.representatives import representatives

STEPS = 60
# Methods that lean on the base: BERT's N(0, 0.02²) hands [CLS] next to nothing of the text, 0.16 makes random features.
RANDOM_FEATURES = ("houlsby", "pfeiffer", "bitfit", "head")
WITHOUT_HEAD = ("houlsby", "pfeiffer", "bitfit")  # the fresh head stays frozen: they must learn by themselves
RATES = {"bitfit": 2e-2, "head": 5e-2, "lora_plus": 1e-3, "svd_lora": 2e-2}  # for 60 steps of a model of width 32


def learn(method, *overrides):
    """(prepared, outcome, what stayed frozen before and after, the log) of 60 steps."""
    spec = settled(f"method={method}", "rank=4", f"train.steps={STEPS}", "train.warmup=2", *overrides)
    base = tiny("bert", width=32, layers=2)
    torch.manual_seed(0)
    built = base.build(2)
    if method in RANDOM_FEATURES:
        with torch.no_grad():
            for p in (p for p in built.model.bert.parameters() if p.ndim > 1):
                p.mul_(8)
    if method in WITHOUT_HEAD:
        built = Built(built.model, built.tokenizer, head=[])
    prepared = prepare(
        built, resolve_targets(base, "all", None) if spec.takes("targets") else None, spec, torch.device("cpu")
    )
    frozen = {n: p.clone() for n, p in prepared.model.named_parameters() if not p.requires_grad}
    changes = {"lr": RATES.get(method, 5e-3), "batch_size": 16, "eval_every": 20, "precision": "fp32"}
    spec = replace(spec, train=replace(spec.train, **changes))
    splits = {
        name: encode(letters(rows, i), built.tokenizer, 16)
        for i, (name, rows) in enumerate([("train", 256), ("dev", 64), ("test", 64)])
    }
    log = Recorder()
    outcome = train(prepared, splits, spec, ("accuracy",), log, lambda _: None, lambda _: None)
    return prepared, outcome, frozen, log


@pytest.mark.parametrize(
    "method",
    representatives(
        ["houlsby", "pfeiffer", "bitfit", "head", "rslora", "lora_plus", "svd_lora", "lora_orth", "lora_pruned"],
        ["bitfit", "lora_pruned"],
    ),
)
def test_it_learns_and_leaves_the_rest_alone(method):
    prepared, outcome, frozen, log = learn(method)
    assert ("classifier.weight" in frozen) == (method in WITHOUT_HEAD)
    assert outcome.test > 0.9
    after = dict(prepared.model.named_parameters())
    assert all(torch.equal(p, after[name]) for name, p in frozen.items())
    low_rank = method in ("rslora", "lora_plus", "svd_lora", "lora_orth", "lora_pruned")
    assert len(prepared.adapters) == (12 if low_rank else 0)
    assert len(bottlenecks_of(prepared.model)) == {"houlsby": 4, "pfeiffer": 2}.get(method, 0)
    assert (prepared.controller is not None) == (method in ("svd_lora", "lora_orth", "lora_pruned"))
    assert bool(log.allocations) == (method == "lora_pruned")


def test_rslora_s_scale():
    prepared, *_ = learn("rslora", "train.steps=3", "train.warmup=0")
    assert [a.scale for a in prepared.adapters.values()] == pytest.approx([2 * 8**0.5 / 4**0.5] * 12)


@pytest.mark.slow
def test_pruned_lora_keeps_its_budget_and_what_is_pruned_stays_off():
    """Doublets score as written out in the YAML; a mask never grows; an off doublet's λ is 0 after every step."""
    prepared, _, _, log = learn("lora_pruned")
    assert sum(adarank.ranks(prepared.model).values()) == 4 * 12
    budgets = [record["budget"] for record in log.allocations]
    assert budgets == sorted(budgets, reverse=True)
    for earlier, later in zip(log.allocations, log.allocations[1:], strict=False):
        assert all(later["ranks"][name] <= rank for name, rank in earlier["ranks"].items())
    for adapter in prepared.adapters.values():
        assert torch.equal(adapter.lam, adapter.mask.to(adapter.lam.dtype))

    controller = prepared.controller
    scores = controller.score.score(controller.buffers, controller.bank)
    importance = controller.bank.unflatten(controller.buffers["importance"] * controller.buffers["uncertainty"])
    expected = [
        sum(importance["Q", i][j].tolist()) / a.in_features + sum(importance["P", i][j].tolist()) / a.out_features
        for i, a in enumerate(prepared.adapters.values())
        for j in range(a.rank)
    ]
    torch.testing.assert_close(scores, torch.tensor(expected))


@pytest.mark.slow
def test_svd_lora_s_penalty_pulls_the_factors_towards_orthonormal_rows():
    """Against the same run without it (γ = 0)."""
    gaps = []
    for gamma in ("5.0", "0.0"):
        prepared, *_ = learn("svd_lora", f"penalty.gamma={gamma}", "train.steps=40")
        factors = [f for a in prepared.adapters.values() for f in (a.Q, a.P)]
        gaps.append(sum(torch.linalg.norm(f @ f.T - torch.eye(len(f))).item() for f in factors))
    assert gaps[0] < 0.5 * gaps[1]
