import numpy as np
import pytest
import torch
from torch.nn import functional as F

import adarank
from adarank.harness.data import collate, encode
from adarank.harness.kinds import KINDS, classify
from adarank.harness.models import tiny
from adarank.harness.plan import Plan
from adarank.harness.rescore import scores_at_the_end
from adarank.harness.tasks.base import Split
from adarank.harness.tasks.questions import squad
from adarank.harness.worth import halves, parts, rises
from tests.harness.kinds import test_generate, test_seq2seq
from tests.harness.tasks.squad_folder import write

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
def test_the_rise_is_the_loss_with_the_triplet_s_column_gone(kind):
    model, adapters, encoded = setting(kind)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    loss, rise = rises(list(parts(model, adapters, encoded, classify, len(encoded), 4)))
    assert loss == pytest.approx(loss_of(model, encoded), rel=1e-9)
    place = 0
    for adapter in adapters.values():
        for i in range(adapter.rank):
            row = adapter.P.detach()[i].clone()
            adapter.P.data[i] = 0.0  # another way to take the triplet out
            assert rise[place] == pytest.approx(loss_of(model, encoded) - loss, abs=1e-11)
            adapter.P.data[i] = row
            place += 1
    assert place == len(rise)
    assert max(map(abs, rise)) > 1e-4  # something was measured
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
    _, rise = rises(list(parts(model, adapters, encoded, classify, len(encoded), 3)))
    place = 2 * list(adapters).index(name) + 1
    assert abs(rise[place]) > 1e-4
    assert all(r == 0.0 for i, r in enumerate(rise) if i != place)
    found = scores_at_the_end(model, adapters, encoded, classify, batch=4, passes=2, seed=0)
    for score in ("magnitude", "contribution", "output"):
        assert np.argmax(found[score]) == place


KINDS_AND_MODELS = [("extract", "deberta_v2"), ("generate", "llama"), ("seq2seq", "bart"), ("seq2seq", "t5")]


@pytest.mark.parametrize(("name", "family"), KINDS_AND_MODELS)
def test_every_kind_of_task_is_probed_by_its_own_loss(tmp_path, name, family):
    """The rise is that of the loss which `evaluate` reports, over windows, or over tokens of responses."""
    kind = KINDS[name]
    task = {"extract": lambda: squad("squad_v2", path=str(write(tmp_path, "v2.0")), max_length=48),
            "generate": test_generate.task, "seq2seq": test_seq2seq.task}[name]()  # fmt: skip
    torch.manual_seed(0)
    built = tiny(family, width=32, layers=2).build(kind.outputs(task), kind)
    model = built.model.double()
    adapters = adarank.adapt(model, rank=1, targets="all-linear", train=built.head)
    with torch.no_grad():
        for adapter in adapters.values():
            adapter.lam.normal_(std=30.0)
    dev, train = (kind.encode(task, split, built.tokenizer) for split in ("dev", "train"))
    plan = Plan(**test_seq2seq.NUMBERS, batch_size=3, metrics=("f1" if name == "extract" else "loss",))
    batch = (
        1 if name == "extract" else 2
    )  # its training loss counts padding, as Transformers' does; its evaluation does not
    loss, rise = rises(list(parts(model, adapters, dev, kind, len(dev), batch)))

    def evaluated():
        return kind.evaluate(model, dev, plan, torch.device("cpu"))["loss"]

    assert loss == pytest.approx(evaluated(), rel=1e-6)
    for place in np.argsort(np.abs(rise))[-3:]:  # those that are worth most
        adapter = list(adapters.values())[place]
        row = adapter.P.detach()[0].clone()
        adapter.P.data[0] = 0.0
        assert rise[place] == pytest.approx(evaluated() - loss, abs=2e-6)
        adapter.P.data[0] = row
    assert max(map(abs, rise)) > 1e-4
    found = scores_at_the_end(model, adapters, train, kind, batch=2, passes=2, seed=0)
    assert sorted(found) == sorted(adarank.scores.__all__)
    assert all(np.isfinite(values).all() for values in found.values())
    few = list(parts(model, adapters, dev, kind, 1, 2))
    assert [part.units for part in few] == [kind.units(dev, np.array([0]))]


def test_it_can_begin_at_any_batch_and_the_halves_are_those_of_every_other_one():
    model, adapters, encoded = setting()
    found = list(parts(model, adapters, encoded, classify, len(encoded), 2))
    assert [part.units for part in found] == [2, 2, 2, 2, 1]
    assert list(parts(model, adapters, encoded, classify, len(encoded), 2, begin=3)) == found[3:]
    even, odd = halves(found)
    whole = rises(found)[1]
    for place in range(len(whole)):
        sums = [sum(part.without[place] - part.loss for part in found[start::2]) for start in (0, 1)]
        assert (even[place], odd[place]) == pytest.approx((sums[0] / 5, sums[1] / 4))
        assert whole[place] == pytest.approx((5 * even[place] + 4 * odd[place]) / 9)
    assert halves(found[:1]) is None


def test_a_regression_s_loss_is_the_squared_error():
    model, adapters, encoded = setting(labels=np.linspace(0, 1, len(WORDS), dtype=np.float32))
    assert rises(list(parts(model, adapters, encoded, classify, len(encoded), 4)))[0] == pytest.approx(
        loss_of(model, encoded), rel=1e-9
    )


def test_every_score_is_recomputed_and_nothing_is_updated():
    model, adapters, encoded = setting()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    found = scores_at_the_end(model, adapters, encoded, classify, batch=4, passes=3, seed=0)
    assert sorted(found) == sorted(adarank.scores.__all__)
    assert {len(values) for values in found.values()} == {2 * len(adapters)}
    lam = torch.cat([adapter.lam.detach() for adapter in adapters.values()])
    assert found["magnitude"] == pytest.approx(lam.abs().tolist())
    assert len({tuple(values) for values in found.values()}) == len(found)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_scores_that_read_a_learned_lambda_are_left_out_of_lora():
    model, adapters, encoded = setting("lora")
    found = scores_at_the_end(model, adapters, encoded, classify, batch=4, passes=1, seed=0)
    assert "magnitude" not in found
    assert "contribution" in found
