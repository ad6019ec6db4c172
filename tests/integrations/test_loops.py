"""The examples of docs/loops.md, and what it says of Lightning and of averaged weights."""

import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import adarank
from tests.conftest import Net
from tests.test_controller import STEPS, data, run, setup

PAGE = (Path(__file__).parents[2] / "docs" / "loops.md").read_text(encoding="utf-8")
SNIPPETS = dict(re.findall(r"```python (\w+)\n(.*?)```", PAGE, re.DOTALL))


def controlled(**options):
    """(net, adapters, controller) as `setup` makes them, not attached yet."""
    torch.manual_seed(0)
    net = Net()
    adapters = adarank.adapt(net, rank=4, train=["head"])
    controller = adarank.RankController(
        adapters,
        score=adarank.scores.adalora(),
        schedule=adarank.schedules.cubic(24, 12, t_i=5, t_f=10, total=STEPS, interval=3),
        penalty=adarank.penalties.orthogonality(1.0),
        **options,
    )
    return net, adapters, controller


def execute(name, net, controller, **names):
    batches = [data(t) for t in range(STEPS)]
    names = {"torch": torch, "adarank": adarank, "model": net, "controller": controller, "batches": batches} | names
    exec(compile(SNIPPETS[name], f"docs/loops.md, {name}", "exec"), names)
    return names


def test_every_example_of_the_page_is_tested():
    assert SNIPPETS.keys() == {"plain", "capture", "lightning", "two", "average"}


def test_the_plain_loop():
    net, _, controller = controlled()
    execute("plain", net, controller)
    assert controller.step == STEPS
    assert sum(adarank.ranks(net).values()) == 12


def test_the_captured_step():
    net, _, controller = controlled()
    names = execute("capture", net, controller)
    assert controller.step == STEPS
    assert sum(adarank.ranks(net).values()) == 12
    assert names["optimizer"].param_groups[0]["lr"] < 1e-2
    assert not names["loss"].requires_grad


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
def test_two_optimisers():
    net, adapters, controller = controlled()
    execute("two", net, controller, adapters=adapters)
    assert controller.step == STEPS
    assert sum(adarank.ranks(net).values()) == 12


def test_an_averaged_model_has_the_budget_s_ranks_and_computes_with_the_averaged_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net, adapters, controller, optimizer = setup(score=adarank.scores.output())  # one that records activations
    history = []
    optimizer.register_step_post_hook(lambda *_: history.append([p.detach().clone() for p in net.parameters()]))
    names = execute("average", net, controller, optimizer=optimizer)
    averaged = names["averaged"].module
    assert adarank.ranks(averaged) == adarank.ranks(net) == controller.last_allocation.ranks
    assert sum(adarank.ranks(averaged).values()) == 12

    expected = history[0]
    for weights in history[1:]:
        expected = [old * 0.9 + new * 0.1 for old, new in zip(expected, weights, strict=True)]
    by_hand, _, its_controller = controlled()
    for parameter, value in zip(by_hand.parameters(), expected, strict=True):
        parameter.data.copy_(value)
    its_controller.bank.sync_views()
    for (name, adapter), mine in zip(adapters.items(), its_controller.bank.adapters, strict=True):
        assert name
        with torch.no_grad():
            mine.lam[~adapter.mask] = 0.0
    x = data(99)[0]
    torch.testing.assert_close(names["averaged"](x), by_hand.train()(x), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(names["averaged"](x), net.eval()(x), atol=1e-4)

    torch.manual_seed(0)
    fresh = Net()
    adarank.load_adapter(fresh, "averaged")
    torch.testing.assert_close(fresh.eval()(x), names["averaged"](x))


@pytest.fixture
def fit(tmp_path):
    lightning = pytest.importorskip("lightning")
    Module = execute("lightning", None, None, lightning=lightning)["Module"]

    def fit(net, controller, steps=STEPS, resume=None, batches=range(STEPS), **options):
        loader = torch.utils.data.DataLoader([data(t) for t in batches], batch_size=None)
        trainer = lightning.Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            **options,
        )
        trainer.fit(Module(net, controller), loader, ckpt_path=resume, **({"weights_only": False} if resume else {}))
        return trainer

    return fit


@pytest.mark.parametrize("variant", ["exact", "paper"])
def test_lightning_gives_the_run_of_a_plain_loop_with_a_clip_that_binds(fit, variant):
    net, _, controller = controlled(variant=variant)
    fit(net, controller, gradient_clip_val=0.05)
    other, _, expected, optimizer = setup(variant=variant, gamma=1.0)
    run(other, expected, optimizer, range(STEPS), clip=0.05)
    assert controller.step == STEPS
    assert torch.equal(controller.bank.mask, expected.bank.mask)
    torch.testing.assert_close(controller.bank.weight, expected.bank.weight, rtol=1e-5, atol=1e-6)
    plain = setup(variant=variant, gamma=1.0)
    run(plain[0], plain[2], plain[3], range(STEPS))
    assert not torch.allclose(plain[2].bank.weight, expected.bank.weight, atol=1e-3)  # the clip binds


def test_lightning_accumulates_and_resumes(fit, tmp_path):
    # Lightning resumes with the loader's first batch, so that all batches are the same here
    options = {"accumulate_grad_batches": 2, "max_epochs": -1, "batches": [0] * STEPS}
    net, _, controller = controlled()
    fit(net, controller, **options)
    assert controller.step == STEPS
    half, _, stopped = controlled()
    fit(half, stopped, steps=13, **options).save_checkpoint(tmp_path / "half.ckpt")
    again, _, resumed = controlled()
    fit(again, resumed, resume=tmp_path / "half.ckpt", **options)
    assert resumed.step == STEPS
    assert torch.equal(resumed.bank.weight, controller.bank.weight)
    assert torch.equal(resumed.bank.mask, controller.bank.mask)


def test_lightning_without_after_backward_stops_at_the_first_step(fit):
    lightning = pytest.importorskip("lightning")
    net, _, controller = controlled()
    Module = execute("lightning", None, None, lightning=lightning)["Module"]

    class Forgets(Module):
        def on_before_optimizer_step(self, optimizer):
            pass

    trainer = lightning.Trainer(max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False)
    loader = torch.utils.data.DataLoader([data(t) for t in range(2)], batch_size=None)
    with pytest.raises(RuntimeError, match="in Lightning, in on_before_optimizer_step"):
        trainer.fit(Forgets(net, controller), loader)


def test_a_compacted_run_that_accelerate_loads_is_refused(tmp_path):
    accelerate = pytest.importorskip("accelerate")

    def prepared():
        net, _, controller = controlled(compaction="final")
        accelerator = accelerate.Accelerator(cpu=True)
        optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-2)
        net, optimizer = accelerator.prepare(net, optimizer)
        return accelerator, net, controller.attach(optimizer), optimizer

    accelerator, net, controller, optimizer = prepared()
    for t in range(STEPS):
        accelerator.backward(F.cross_entropy(net(data(t)[0]), data(t)[1]))
        controller.after_backward()
        optimizer.step()
        optimizer.zero_grad()
    assert controller.bank.triplets == 12
    accelerator.save_state(tmp_path)
    with pytest.raises(RuntimeError, match="load the optimiser's state before the model's"):
        prepared()[0].load_state(tmp_path)
