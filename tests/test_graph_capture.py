"""A captured step is the eager one bit for bit, on tapes: what they freeze, a CUDA graph freezes too.

The eager form itself (the bank feeds the adapters) is compared with an ordinary loop in fp64.
"""

import copy
import warnings

import pytest
import torch
import transformers
from torch import nn

import adarank
from adarank import SettingError
from experiments.bench.tape import Tape
from tests.conftest import Net
from tests.representatives import representatives

STEPS, RANK = 40, 6
LENGTHS = (8, 12, 16)
tapes: list[Tape] = []


class Kept(Tape):
    """A tape that the test can look at."""

    def __init__(self):
        super().__init__()
        tapes.append(self)


@pytest.fixture(autouse=True)
def no_tapes():
    tapes.clear()


def classifier(family):
    sizes = {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 4, "intermediate_size": 64, "num_labels": 2, "pad_token_id": 0}
    drops = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **sizes, **(drops if family == "bert" else {}))
    return transformers.AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa").train()


def batches(steps=STEPS):
    draw = torch.Generator().manual_seed(3)
    found = []
    for step in range(steps):
        ids = torch.randint(1, 200, (4, LENGTHS[step % 3]), generator=draw)
        mask = torch.ones_like(ids)
        mask[0, ids.shape[1] // 2 :] = 0
        found.append({"input_ids": ids, "attention_mask": mask, "labels": torch.randint(0, 2, (4,), generator=draw)})
    return found


def setup(family="bert", kind="svd", **options):
    """(model, optimiser, controller or None) of one run."""
    model = classifier(family)
    head = "classifier" if family == "bert" else "score"
    torch.manual_seed(1)
    adapters = adarank.adapt(model, kind, rank=RANK, targets="all-linear", train=[head])
    count, controller = len(adapters), None
    if options.pop("adapts", True):
        controller = adarank.RankController(
            adapters,
            **{
                "score": adarank.scores.adalora(),
                "schedule": adarank.schedules.cubic(RANK * count, 3 * count, 3, 8, STEPS, 2),
                "penalty": adarank.penalties.orthogonality(0.1),
                **options,
            },
        )
    return model, optimiser(model), controller


def optimiser(model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, fused=True)


def rates_as_tensors(optimizer):
    """As a captured step has them: AdamW rounds otherwise with a number."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]))


def train(model, optimizer, controller, graphs, steps=STEPS, **options):
    """Losses of `steps`, under a learning rate that a scheduler lowers."""
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 - t / STEPS)
    rates_as_tensors(optimizer)
    step = adarank.capture(model, optimizer, controller, graphs=graphs, **options)
    losses = []
    for batch in batches(steps):
        losses.append(step(batch).item())
        scheduler.step()
    return losses


def assert_equal(first, second):
    """Models, averages and masks, bit for bit."""
    (model, _, controller), (other, _, theirs) = first, second
    state = other.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    if controller is not None:
        assert all(torch.equal(value, theirs.buffers[name]) for name, value in controller.buffers.items())
        assert torch.equal(controller.bank.mask, theirs.bank.mask)
        assert adarank.ranks(model) == adarank.ranks(other)


CASES = {
    "adalora": {},
    "adalora of a decoder": {"family": "llama"},
    "lora": {"kind": "lora", "adapts": False},
    "paper": {"variant": "paper"},
    "original": {"variant": "original"},
    "masked": {"pruned_triplets": "masked"},
    "frozen": {"pruned_triplets": "frozen"},
    "masked lora": {
        "kind": "lora",
        "pruned_triplets": "masked",
        "penalty": None,
        "score": adarank.scores.sensitivity(),
    },
    "final compaction": {"compaction": "final"},
    "progressive compaction": {"compaction": "progressive", "compact_after": 1},
    "proximal": {"penalty": adarank.penalties.l1_proximal(0.1)},
    "finishing": {
        "kind": "lora",
        "pruned_triplets": "frozen",
        "penalty": None,
        "score": adarank.scores.settling(checks=3),
        "allocator": adarank.allocators.one_by_one(0.01),
        "schedule": adarank.schedules.growing(12, 12 * RANK, 3, 8, STEPS, 2),
    },
}


@pytest.mark.parametrize(
    "case", representatives(CASES, ["adalora", "adalora of a decoder", "lora", "final compaction"])
)
def test_replayed_is_eager_bit_for_bit_and_nothing_is_read_back(case):
    eager = setup(**CASES[case])
    captured = setup(**CASES[case])
    if captured[2] is not None:
        eager[2].smallest_removal = 0.1
    losses = train(*eager, graphs=False)
    assert train(*captured, graphs=Kept) == losses
    assert_equal(eager, captured)
    assert not any(tape.syncs for tape in tapes)
    assert losses[-1] != losses[0]
    if case == "adalora":
        assert len(tapes) == 3 + 2  # three lengths; with scores observed, and without
        assert sum(adarank.ranks(captured[0]).values()) < RANK * 12


def test_a_learning_rate_that_a_graph_froze_would_be_noticed(monkeypatch):
    losses = train(*setup(), graphs=False)
    monkeypatch.setattr(adarank.graph_capture.CapturedStep, "_keep_rates", lambda self: None)
    model, optimizer, controller = setup()
    step = adarank.capture(model, optimizer, controller, graphs=Tape)
    found = []
    for t, batch in enumerate(batches()):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - t / STEPS)
        found.append(step(batch).item())
    assert found != losses


def test_a_rate_set_by_hand_is_the_next_step_s():
    runs = []
    for graphs in (False, Tape):
        model, optimizer, controller = setup()
        rates_as_tensors(optimizer)
        step, losses = adarank.capture(model, optimizer, controller, graphs=graphs), []
        for t, batch in enumerate(batches(10)):
            for group in optimizer.param_groups:
                group["lr"] = torch.tensor(1e-2 / (1 + t))
            losses.append(step(batch).item())
        runs.append(losses)
    assert runs[0] == runs[1]


def test_rates_of_single_modules_stay_on_the_device():
    """The proximal step compares no rates, since it would read them back."""
    runs = []
    for graphs in (False, Kept):
        model, _, controller = setup(penalty=adarank.penalties.l1_proximal(0.1))
        factors = [[*a.parameters(recurse=False)] for a in controller.bank.adapters]
        groups = [{"params": part, "lr": 1e-2 / (1 + i % 2)} for i, part in enumerate(factors)]
        optimizer = torch.optim.AdamW(groups, fused=True)
        rates_as_tensors(optimizer)
        step = adarank.capture(model, optimizer, controller, graphs=graphs)
        runs.append([step(batch).item() for batch in batches(12)])
    assert runs[0] == runs[1]
    assert tapes
    assert not any(tape.syncs for tape in tapes)


def loop(model, optimizer, controller, autocast=None, clip=1.0, steps=None):
    """What the step replaces, written out."""
    losses = []
    for batch in batches(20) if steps is None else steps:
        with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
            loss = model(**batch).loss
        loss.backward()
        if controller is not None:
            controller.after_backward()
        if clip:
            nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


FED = {
    "svd": {},
    "lora": {"kind": "lora", "adapts": False},
    "masked": {"pruned_triplets": "masked"},
    "masked lora": {
        "kind": "lora",
        "pruned_triplets": "masked",
        "penalty": None,
        "score": adarank.scores.sensitivity(),
    },
    "frozen lora": {"kind": "lora", "pruned_triplets": "frozen", "score": adarank.scores.sensitivity()},
}


@pytest.mark.parametrize("case", representatives(FED, ["svd", "lora", "frozen lora"]))
def test_a_fed_step_is_the_ordinary_loop_s(case):
    """With "frozen lora", whose λ is constant but zero where it is pruned, the pruned triplets stayed in the pass."""
    runs = []
    for fed in (True, False):
        model, _, controller = setup(**FED[case])
        model.double()
        optimizer = optimiser(model)
        if controller is not None:
            controller.attach(optimizer)
        if fed:
            step = adarank.capture(model, optimizer, controller)
            assert step.feed is not None
            losses = [step(batch).item() for batch in batches(20)]
        else:
            losses = loop(model, optimizer, controller)
        runs.append((losses, model.state_dict()))
    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-10)
    for name, value in runs[0][1].items():
        torch.testing.assert_close(value, runs[1][1][name], rtol=1e-7, atol=1e-9)


def test_under_autocast_the_path_computes_in_its_dtype(safe_bf16):
    first, second = setup(), setup()
    step = adarank.capture(*first, autocast=torch.bfloat16)
    assert step.feed.gained_Q.dtype == torch.bfloat16
    losses = [step(batch).item() for batch in batches(20)]
    second[2].attach(second[1])
    assert losses == pytest.approx(loop(*second, autocast=torch.bfloat16), rel=0.02)
    assert all(p.dtype == torch.float32 for p in first[0].parameters())


def test_dropout_of_the_path_is_drawn_again_in_every_replay():
    model, optimizer, _ = setup(adapts=False)
    for adapter in (m for m in model.modules() if hasattr(m, "fed")):
        adapter.dropout = 0.5
    with torch.no_grad():
        for adapter in (m for m in model.modules() if hasattr(m, "fed")):
            adapter.lam.fill_(1.0)
    step = adarank.capture(model, optimizer, graphs=Tape)
    batch = batches(1)[0]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    assert len({step(batch).item() for _ in range(8)}) > 4


@pytest.mark.parametrize("graphs", [False, Tape])
@pytest.mark.parametrize("adapts", [True, False])
def test_in_evaluation_mode_it_trains_as_the_ordinary_loop_does(adapts, graphs):
    """The factors got no gradient, since only adapters in training mode are fed."""
    modes = [False] * 5 + [True] * 5 + [False]
    runs = []
    for captured in (True, False):
        model, optimizer, controller = setup(adapts=adapts)
        rates_as_tensors(optimizer)
        if captured:
            step = adarank.capture(model, optimizer, controller, graphs=graphs)
        elif adapts:
            controller.attach(optimizer)
        for mode, batch in zip(modes, batches(len(modes)), strict=True):
            model.train(mode)
            step(batch) if captured else loop(model, optimizer, controller, steps=[batch])
        runs.append(model.state_dict())
    for name, value in runs[0].items():
        torch.testing.assert_close(value, runs[1][name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("what", ["full fine-tuning", "unreached"])
def test_without_a_bank(what):
    """A model without adapters, and one whose adapters are not all reached, under no controller."""

    def build():
        torch.manual_seed(0)
        net = Net()
        if what == "unreached":
            adarank.adapt(net, "lora", rank=2, targets=["up", "down"])
            net.layers = nn.ModuleList([*net.layers])
            net.forward = lambda x: net.head(net.layers[1](net.embed(x)))
        return net, optimiser(net)

    runs = []
    for graphs in (False, Tape, None):
        net, optimizer = build()
        rates_as_tensors(optimizer)
        loss = lambda model, batch: model(batch["x"]).square().mean()  # noqa: E731
        step = None if graphs is None else adarank.capture(net, optimizer, loss=loss, graphs=graphs)
        losses = []
        for i in range(8):
            batch = {"x": torch.full((4, 8), 0.1 * i)}
            if step is None:
                found = loss(net, batch)
                found.backward()
                nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            else:
                found = step(batch)
            losses.append(found.item())
        runs.append((losses, net.state_dict()))
    assert runs[0][0] == runs[1][0]
    assert runs[0][0] == pytest.approx(runs[2][0], rel=1e-5)
    assert all(torch.equal(value, runs[1][1][name]) for name, value in runs[0][1].items())


def test_a_loaded_state_is_what_the_next_steps_continue_from():
    reference = setup()
    losses = train(*reference, graphs=False, steps=12)
    model, optimizer, controller = setup()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 - t / STEPS)
    step = adarank.capture(model, optimizer, controller, graphs=Tape)
    saved = None
    for t, batch in enumerate(batches(12)):
        if t == 7:
            saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), scheduler.state_dict()))
        step(batch)
        scheduler.step()
    assert isinstance(saved[1]["param_groups"][0]["lr"], float), "a checkpoint is that of an ordinary run"
    optimizer.load_state_dict(saved[1])
    model.load_state_dict(saved[0])
    scheduler.load_state_dict(saved[2])
    again = []
    for batch in batches(12)[7:]:
        again.append(step(batch).item())
        scheduler.step()
    assert again == losses[7:]
    assert_equal(reference, (model, optimizer, controller))


def test_shapes_beyond_the_first_eight_run_without_a_graph():
    net = Net()
    optimizer = optimiser(net)
    step = adarank.capture(net, optimizer, loss=lambda m, b: m(b["x"]).square().mean(), graphs=Kept)
    for rows in [*range(1, 14), *range(1, 14)]:
        step({"x": torch.ones(rows, 8)})
    assert len(tapes) == 8 + 1


def test_an_ordinary_step_between_two_captured_ones_decides_for_itself():
    model, optimizer, controller = setup()
    step = adarank.capture(model, optimizer, controller, graphs=Tape)
    for batch in batches(6):
        step(batch)
    loop_batch = batches(7)[6]
    model(**loop_batch).loss.backward()
    controller.after_backward()
    optimizer.step()
    optimizer.zero_grad()
    assert controller.step == 7


def test_adapters_that_compute_in_their_own_way_are_not_fed():
    model, optimizer, controller = setup()
    next(m for m in model.modules() if hasattr(m, "fed")).fused = False
    step = adarank.capture(model, optimizer, controller, graphs=Tape)
    assert step.feed is None
    found = [step(batch).item() for batch in batches(12)]
    again = setup()
    next(m for m in again[0].modules() if hasattr(m, "fed")).fused = False
    assert train_without_scheduler(*again) == found


def train_without_scheduler(model, optimizer, controller):
    rates_as_tensors(optimizer)
    step = adarank.capture(model, optimizer, controller, graphs=False)
    return [step(batch).item() for batch in batches(12)]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"graphs": "yes"}, "graphs must be auto, true or false (got 'yes')"),
        ({"graphs": True}, "graphs must be auto or false without a CUDA device (got true)"),
        ({"max_grad_norm": -1}, "max_grad_norm must be at least 0 (got -1)"),
    ],
)
def test_bad_settings(options, says):
    with pytest.raises(SettingError) as error:
        adarank.capture(*setup(), **options)
    assert str(error.value) == says


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda run: run[0].gradient_checkpointing_enable(), "activations are recomputed in the backward pass"),
        (lambda run: setattr(run[2], "score", adarank.scores.output()), "the score records activations"),
        (lambda run: run[1].defaults.pop("capturable"), "AdamW has no capturable form"),
    ],
)
def test_what_cannot_be_captured_runs_eagerly_and_says_why(change, says):
    run = setup()
    change(run)
    with pytest.warns(UserWarning, match=f"the step runs without CUDA graphs: {says}"):
        step = adarank.capture(*run, graphs=Tape)
    assert step.make is None


def test_a_controller_of_another_optimiser_is_refused():
    model, optimizer, controller = setup()
    controller.attach(optimiser(model))
    with pytest.raises(RuntimeError, match="attached to another optimiser"):
        adarank.capture(model, optimizer, controller)


def test_without_a_device_for_graphs_nothing_is_said():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step = adarank.capture(*setup())
    assert step.make is None
