from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import adarank
from adarank.harness.data.batches import collate, encode
from adarank.harness.data.task_types import TASK_TYPES, classify
from adarank.harness.data.tasks.base import Split
from adarank.harness.data.tasks.questions import squad
from adarank.harness.models import tiny
from adarank.pieces import needs
from adarank.probe import ablation
from adarank.probe.ablation import ablate, halves, loss_increase
from adarank.probe.score_fidelity import final_scores
from adarank.scores.score import Score
from tests.harness.data.task_types import test_generate, test_seq2seq
from tests.harness.data.tasks.squad_folder import write
from tests.representatives import representatives

WORDS = ["good film", "dull", "a fine long tale of love", "bad", "why not", "it ends", "great", "no", "so so film"]


def setting(kind="svd", family="bert", labels=None):
    torch.manual_seed(0)
    built = tiny(family).build(2 if labels is None else 1)
    built.model.double()  # a triplet of a tiny model moves the loss by less than fp32 resolves
    adapters = adarank.adapt(built.model, adapter=kind, rank=2, targets="all-linear", train=built.head)
    with torch.no_grad():
        for adapter in adapters.values():
            adapter.P.normal_()
            if kind == "svd":
                adapter.lam.normal_()
    label = np.arange(len(WORDS)) % 2 if labels is None else labels
    return built.model, adapters, encode(Split(WORDS, None, label), built.tokenizer, 16)


def loss_of(model, encoded):
    """Written out: all rows in one batch, the loss in fp64."""
    model.eval()
    inputs, labels = collate(encoded, np.arange(len(encoded)), torch.device("cpu"))
    with torch.no_grad():
        logits = model(**inputs).logits.double()
    if labels.is_floating_point():
        return float(((logits.squeeze(-1) - labels.double()) ** 2).mean())
    return float(F.cross_entropy(logits, labels))


@pytest.mark.parametrize("kind", ["svd", "lora"])
def test_the_increase_is_the_loss_with_the_triplet_s_column_gone(kind):
    model, adapters, encoded = setting(kind)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    loss, increase = loss_increase(list(ablate(model, adapters, encoded, classify, len(encoded), 4)))
    assert loss == pytest.approx(loss_of(model, encoded), rel=1e-9)
    place = 0
    for adapter in adapters.values():
        for i in range(adapter.rank):
            row = adapter.P.detach()[i].clone()
            adapter.P.data[i] = 0.0  # another way to take the triplet out
            assert increase[place] == pytest.approx(loss_of(model, encoded) - loss, abs=1e-11)
            adapter.P.data[i] = row
            place += 1
    assert place == len(increase)
    assert max(map(abs, increase)) > 1e-4  # something was measured
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_planted_triplet_is_found():
    """All triplets are nothing but one, to which the labels are fitted: it alone is worth something."""
    model, adapters, encoded = setting()
    with torch.no_grad():
        for adapter in adapters.values():
            adapter.lam.zero_()
        name, adapter = list(adapters.items())[-2]
        adapter.lam[1] = 3.0
    inputs, _ = collate(encoded, np.arange(len(encoded)), torch.device("cpu"))
    model.eval()
    with torch.no_grad():
        encoded.label.copy_(model(**inputs).logits.argmax(-1))
    _, increase = loss_increase(list(ablate(model, adapters, encoded, classify, len(encoded), 3)))
    place = 2 * list(adapters).index(name) + 1
    assert abs(increase[place]) > 1e-4
    assert all(r == 0.0 for i, r in enumerate(increase) if i != place)
    found = final_scores(model, adapters, encoded, classify, batch=4, passes=2, seed=0)
    for score in ("magnitude", "contribution", "output"):
        assert np.argmax(found[score]) == place


TYPES_AND_MODELS = [("extract", "deberta_v2"), ("generate", "llama"), ("seq2seq", "bart"), ("seq2seq", "t5")]


@pytest.mark.parametrize(("name", "family"), representatives(TYPES_AND_MODELS, 2))
def test_every_task_type_is_probed_by_its_own_loss(tmp_path, name, family):
    """The increase is that of the loss which `evaluate` reports, over windows, or over tokens of responses."""
    task_type = TASK_TYPES[name]
    task = {"extract": lambda: squad("squad_v2", path=str(write(tmp_path, "v2.0")), max_length=48),
            "generate": test_generate.task, "seq2seq": test_seq2seq.task}[name]()  # fmt: skip
    torch.manual_seed(0)
    built = tiny(family, width=32, layers=2).build(task_type.outputs(task), task_type)
    model = built.model.double()
    adapters = adarank.adapt(model, rank=1, targets="all-linear", train=built.head)
    with torch.no_grad():
        for adapter in adapters.values():
            adapter.lam.normal_(std=30.0)
    dev, train = (task_type.encode(task, split, built.tokenizer) for split in ("dev", "train"))
    metrics, config = ("f1" if name == "extract" else "loss",), replace(test_seq2seq.CONFIG, batch_size=3)
    batch = (
        1 if name == "extract" else 2
    )  # its training loss counts padding, as Transformers' does; its evaluation does not
    loss, increase = loss_increase(list(ablate(model, adapters, dev, task_type, len(dev), batch)))

    def evaluated():
        return task_type.evaluate(model, dev, metrics, config, torch.device("cpu"))["loss"]

    assert loss == pytest.approx(evaluated(), rel=1e-6)
    for place in np.argsort(np.abs(increase))[-3:]:  # those that are worth most
        adapter = list(adapters.values())[place]
        row = adapter.P.detach()[0].clone()
        adapter.P.data[0] = 0.0
        assert increase[place] == pytest.approx(evaluated() - loss, abs=2e-6)
        adapter.P.data[0] = row
    assert max(map(abs, increase)) > 1e-4
    found = final_scores(model, adapters, train, task_type, batch=2, passes=2, seed=0)
    assert sorted(found) == sorted(adarank.scores.__all__)
    assert all(np.isfinite(values).all() for values in found.values())
    few = list(ablate(model, adapters, dev, task_type, 1, 2))
    assert [part.units for part in few] == [task_type.units(dev, np.array([0]))]


def test_it_can_begin_at_any_batch_and_the_halves_are_those_of_every_other_one():
    model, adapters, encoded = setting()
    found = list(ablate(model, adapters, encoded, classify, len(encoded), 2))
    assert [part.units for part in found] == [2, 2, 2, 2, 1]
    assert list(ablate(model, adapters, encoded, classify, len(encoded), 2, begin=3)) == found[3:]
    even, odd = halves(found)
    whole = loss_increase(found)[1]
    for place in range(len(whole)):
        sums = [sum(part.without[place] - part.loss for part in found[start::2]) for start in (0, 1)]
        assert (even[place], odd[place]) == pytest.approx((sums[0] / 5, sums[1] / 4))
        assert whole[place] == pytest.approx((5 * even[place] + 4 * odd[place]) / 9)
    assert halves(found[:1]) is None


def test_a_regression_s_loss_is_the_squared_error():
    model, adapters, encoded = setting(labels=np.linspace(0, 1, len(WORDS), dtype=np.float32))
    assert loss_increase(list(ablate(model, adapters, encoded, classify, len(encoded), 4)))[0] == pytest.approx(
        loss_of(model, encoded), rel=1e-9
    )


def test_every_score_is_recomputed_and_nothing_is_updated():
    model, adapters, encoded = setting()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    found = final_scores(model, adapters, encoded, classify, batch=4, passes=3, seed=0)
    assert sorted(found) == sorted(adarank.scores.__all__)
    assert {len(values) for values in found.values()} == {2 * len(adapters)}
    lam = torch.cat([adapter.lam.detach() for adapter in adapters.values()])
    assert found["magnitude"] == pytest.approx(lam.abs().tolist())
    assert len({tuple(values) for values in found.values()}) == len(found)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_final_weights_have_settled_and_a_path_is_followed(monkeypatch):
    """Every triplet used to count as unsettled, which turned the order around, and every gradient was at the path's
    end."""
    model, adapters, encoded = setting()
    found = final_scores(model, adapters, encoded, classify, batch=4, passes=3, seed=0)
    assert min(found["settling"]) > 0
    assert all(adapter.path is None for adapter in adapters.values())
    at_the_end = needs("seed")(lambda seed=None: adarank.scores.igu(points=1, seed=seed))
    monkeypatch.setattr(adarank.scores, "endpoint", at_the_end, raising=False)
    monkeypatch.setattr(adarank.scores, "__all__", [*adarank.scores.__all__, "endpoint"])
    both = final_scores(model, adapters, encoded, classify, batch=4, passes=3, seed=0)
    assert both["igu"] == found["igu"], "each path has passes of its own"
    assert both["igu"] != pytest.approx(both["endpoint"], rel=1e-3)


def test_scores_that_read_a_learned_lambda_are_left_out_of_lora():
    model, adapters, encoded = setting("lora")
    found = final_scores(model, adapters, encoded, classify, batch=4, passes=1, seed=0)
    assert "magnitude" not in found
    assert "contribution" in found


@pytest.mark.parametrize("family", representatives(["bert", "bart", "t5", "llama", "gpt2"], 2))
def test_cached_blocks_change_nothing_and_are_all_that_ran_before(monkeypatch, family):
    """Bit for bit the losses without a cache, and every earlier block, those of the encoder included, runs once a
    batch."""
    if family in ("bart", "t5"):
        task_type, task = TASK_TYPES["seq2seq"], test_seq2seq.task()
    else:
        task_type, task = classify, None
    torch.manual_seed(0)
    built = tiny(family, width=32, layers=3).build(2 if task is None else 0, task_type)
    adapters = adarank.adapt(built.model, rank=1, targets="all-linear", train=built.head)
    with torch.no_grad():
        for adapter in adapters.values():
            adapter.lam.normal_(std=3.0)
    if task is None:
        rows = encode(Split(WORDS, None, np.arange(len(WORDS)) % 2), built.tokenizer, 16)
    else:
        rows = task_type.encode(task, "dev", built.tokenizer)
    blocks = list(dict.fromkeys(map(ablation.unit_of, adapters)))  # encoder before decoder, as they run
    assert len(blocks) == 3 * (1 if task is None else 2)
    runs = dict.fromkeys(blocks, 0)
    inside = {ablation.unit_of(name): adapter for name, adapter in adapters.items()}  # a module of each block
    for block, adapter in inside.items():
        adapter.register_forward_hook(lambda *_, block=block: runs.update({block: runs[block] + 1}))
    batch = len(rows)
    cached = list(ablate(built.model, adapters, rows, task_type, batch, batch))
    triplets = [blocks.index(ablation.unit_of(name)) for name in adapters]
    for place, block in enumerate(blocks):  # once whole, then for the triplets of its own and of earlier blocks
        assert runs[block] == 1 + sum(own <= place for own in triplets), block
    monkeypatch.setattr(ablation, "earlier_calls", lambda calls, unit: [])
    assert list(ablate(built.model, adapters, rows, task_type, batch, batch)) == cached
    assert len({*cached[0].without}) > len(adapters) / 2  # something was measured


def test_a_block_that_runs_again_later_is_not_cached():
    assert ablation.earlier_calls(["a", "b", "a", "c", "d"], "c") == ["b"]
    assert ablation.earlier_calls(["a", "b", "a", "c", "d"], "b") == []  # the first a, and a runs again
    assert ablation.earlier_calls(["a", "b"], "never called") == []


def test_an_adapter_outside_every_block_is_ablated_with_all_blocks_cached():
    torch.manual_seed(0)
    built = tiny("bert", width=32, layers=2).build(2)
    adapters = adarank.adapt(built.model.double(), rank=1, targets=["pooler.dense", "query"], train=["classifier"])
    with torch.no_grad():
        for adapter in adapters.values():
            adapter.lam.normal_(std=3.0)
    rows = encode(Split(WORDS, None, np.arange(len(WORDS)) % 2), built.tokenizer, 16)
    (part,) = ablate(built.model, adapters, rows, classify, len(rows), len(rows))
    for name, without in zip(adapters, part.without, strict=True):
        kept = adapters[name].lam.detach().clone()
        adapters[name].lam.data.zero_()
        assert without / len(rows) == pytest.approx(loss_of(built.model, rows), rel=1e-12)
        adapters[name].lam.data.copy_(kept)


def mean_input(adapter, x):
    return x.mean() * torch.ones_like(adapter.Q[:, 0])


def reads_inputs():
    """A second score that reads activations: the last mean of its adapter's input."""

    def observe(buffers, bank):
        buffers["last"].copy_(bank.activation)

    return Score(
        lambda bank: {"last": bank.triplet_buffer()}, observe, lambda buffers, bank: buffers["last"], mean_input
    )


def needs_an_argument(power):
    raise AssertionError("it is not called")


@needs("seed")
def seeded(seed):
    def score(buffers, bank):
        return bank.triplet_buffer() + seed

    return Score(lambda bank: {}, lambda buffers, bank: None, score)


def test_several_activation_scores_at_once_and_one_that_has_no_defaults(monkeypatch, capsys):
    model, adapters, encoded = setting()
    alone = final_scores(model, adapters, encoded, classify, batch=4, passes=2, seed=5)
    assert capsys.readouterr().err == ""
    for make in (reads_inputs, needs_an_argument, seeded):
        monkeypatch.setattr(adarank.scores, make.__name__, make, raising=False)
    names = [*adarank.scores.__all__, "reads_inputs", "needs_an_argument", "seeded"]
    monkeypatch.setattr(adarank.scores, "__all__", names)
    together = final_scores(model, adapters, encoded, classify, batch=4, passes=2, seed=5)
    assert {name: together[name] for name in alone} == alone  # "output", the first that reads activations, among them
    assert sorted(together) == sorted({*names} - {"needs_an_argument"})
    assert len({*together["reads_inputs"]}) > 2
    assert together["seeded"] == [5.0] * len(together["seeded"])
    assert all(adapter.watch is None for adapter in adapters.values())
    error = capsys.readouterr().err
    assert error.startswith("score needs_an_argument is omitted, because it cannot be built with its defaults (")
    assert "'power'" in error
    assert error.count("\n") == 1
