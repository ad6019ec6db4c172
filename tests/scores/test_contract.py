"""A contract over every score: whatever lies in conf/score is held to it."""

from copy import deepcopy

import pytest
import torch
from omegaconf import OmegaConf
from torch.nn import functional as F

import adarank
from adarank.bank import Bank
from adarank.harness.config.spec import Piece
from adarank.harness.config.validate import conf_folder
from adarank.scores.score import Score
from tests.conftest import Net
from tests.representatives import representatives
from tests.test_controller import STEPS, data, run, setup
from tests.test_engine import NoSync

NAMES = sorted(p.stem for p in (conf_folder() / "score").glob("*.yaml") if p.stem != "none")
KINDS = {"svd": "trainable", "lora": "masked"}  # with what becomes of pruned triplets
SIGNED = {"settling", "taylor"}  # it foresees which way the loss changes
BY_MODULE = {"module_output"}  # one number for all triplets of a module
SHARES = {"salience"}  # of a sum over the triplets, those that compaction removes included


def make(name) -> Score:
    node = OmegaConf.to_container(OmegaConf.load(conf_folder() / "score" / f"{name}.yaml"))
    return Piece("score", node.pop("_target_"), node)()


def start(name, kind, pruned_triplets=None, **options):
    return setup(adapter=kind, score=make(name), pruned_triplets=pruned_triplets or KINDS[kind], **options)


def refusal(name, kind):
    try:
        start(name, kind)
    except adarank.SettingError as error:
        return str(error)
    return None


REFUSED = {(name, kind): said for name in NAMES for kind in KINDS if (said := refusal(name, kind))}
CASES = [(name, kind) for name in NAMES for kind in KINDS if (name, kind) not in REFUSED]
every_case = pytest.mark.parametrize(("name", "kind"), CASES)
some_cases = pytest.mark.parametrize(("name", "kind"), representatives(CASES, 5))


def scores_of(controller):
    return controller.score.score(controller.buffers, controller.bank)


def test_svd_is_always_served_and_a_refusal_is_a_sentence():
    assert {name for name, kind in CASES if kind == "svd"} == set(NAMES)
    for (name, kind), said in REFUSED.items():
        assert said.startswith(f"score={name} ")
        assert f"adapter='{kind}'" in said
        assert " needs " in said
        assert "(got " in said
        assert "\n" not in said


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_finite_number_a_triplet_and_buffers_of_a_known_shape(name, kind, dtype):
    net, _, controller, optimizer = start(name, kind, dtype=dtype)
    run(net, controller, optimizer, range(4))
    scores = scores_of(controller)
    assert scores.shape == (controller.bank.triplets,)
    assert scores.dtype == dtype
    assert scores.isfinite().all()
    assert name in SIGNED or (scores >= 0).all()
    assert scores.unique().numel() > (5 if name in BY_MODULE else 12)  # it tells triplets, or modules, apart
    shapes = {(controller.bank.weight.numel(),), (controller.bank.triplets,), ()}
    assert {tuple(b.shape[: max(1, b.ndim - 1)]) for b in controller.buffers.values()} <= shapes


@every_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_scored_in_fp32(name, kind, dtype):
    net = Net()
    bank = Bank(adarank.adapt(net, kind, rank=3))
    net.to(dtype)
    bank.allocate()
    bank.weight.fill_(1e-3)
    bank.grad.fill_(1e-3)
    bank.activation = torch.full((bank.triplets,), 1e-6)
    score = make(name)
    buffers = score.init(bank)
    score.observe(buffers, bank)
    found = score.score(buffers, bank)
    assert {b.dtype for b in buffers.values()} <= {torch.float32}
    assert found.dtype == torch.float32
    assert (found < 0).all() if name in SIGNED else (found > 0).all()


@every_case
def test_all_zero_weights_and_gradients_give_finite_scores(name, kind):
    bank = Bank(adarank.adapt(Net(), kind, rank=3))
    bank.weight.zero_()
    bank.activation = torch.zeros(bank.triplets)
    score = make(name)
    buffers = score.init(bank)
    for _ in range(2):
        score.observe(buffers, bank)
        assert score.score(buffers, bank).isfinite().all()


@every_case
def test_asking_for_scores_changes_nothing(name, kind):
    net, _, controller, optimizer = start(name, kind)
    run(net, controller, optimizer, range(4))
    bank = controller.bank
    before = deepcopy([bank.weight, bank.grad, bank.mask, *controller.buffers.values(), torch.get_rng_state()])
    first = scores_of(controller)
    kept = first.clone()
    first.fill_(-1.0)  # a caller may do with it what it likes
    assert torch.equal(scores_of(controller), kept)
    after = [bank.weight, bank.grad, bank.mask, *controller.buffers.values(), torch.get_rng_state()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@every_case
@pytest.mark.parametrize("variant", representatives(["exact", "paper"], 1))
def test_a_step_reads_nothing_back_from_the_device(name, kind, variant):
    net, _, controller, optimizer = start(name, kind, variant=variant)
    for t in range(10):  # the first allocations are after steps 6 and 9
        x, y = data(t)
        with NoSync():
            loss = F.cross_entropy(net(x), y)
        loss.backward()
        with NoSync():
            controller.after_backward()
        with NoSync():
            controller._before_step(optimizer)
            controller._after_step(optimizer)
        controller.step -= 1
        controller._steps.ready = True
        optimizer.step()
        optimizer.zero_grad()
    assert controller.last_allocation.step == 9


@some_cases
def test_stopped_and_resumed_is_bit_identical(name, kind, tmp_path):
    stop = 17  # between two allocations
    net, _, controller, optimizer = start(name, kind)
    run(net, controller, optimizer, range(stop))
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    run(net, controller, optimizer, range(stop, 26))
    again, _, resumed, fresh = start(name, kind)
    run(again, resumed, fresh, range(2))
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    again.load_state_dict(state["model"])
    fresh.load_state_dict(state["optimizer"])
    run(again, resumed, fresh, range(stop, 26))
    assert torch.equal(resumed.bank.weight, controller.bank.weight)
    assert torch.equal(resumed.bank.mask, controller.bank.mask)
    assert resumed.buffers.keys() == controller.buffers.keys()
    assert all(torch.equal(b, controller.buffers[key]) for key, b in resumed.buffers.items())


@some_cases
def test_compaction_keeps_the_scores_of_what_it_keeps(name, kind):
    net, _, controller, optimizer = start(name, kind)
    run(net, controller, optimizer, range(25))
    assert controller.last_allocation.step == 24  # pruned λ are zero at this moment
    mask, before = controller.bank.mask.clone(), scores_of(controller)
    controller.compact()
    assert 0 < controller.bank.triplets < len(mask)
    if name not in SHARES:
        torch.testing.assert_close(scores_of(controller), before[mask], rtol=1e-6, atol=0)
    run(net, controller, optimizer, range(25, 28))
    assert scores_of(controller).shape == (controller.bank.triplets,)


@some_cases
def test_it_goes_with_compaction_to_the_end(name, kind):
    net, _, controller, optimizer = start(name, kind, compaction="progressive", compact_after=2)
    run(net, controller, optimizer, range(STEPS))
    assert controller.last_allocation.kept == 12
    assert controller.bank.triplets == 12


@some_cases
def test_it_goes_with_frozen_triplets_the_paper_s_order_and_a_model_that_moves(name, kind):
    net, _, controller, optimizer = start(name, kind, pruned_triplets="frozen", variant="paper")
    run(net, controller, optimizer, range(20))
    net.double()
    optimizer.load_state_dict(optimizer.state_dict())
    run(net, controller, optimizer, range(20, STEPS))
    assert controller.last_allocation.kept == 12
    assert scores_of(controller).dtype == torch.float64
