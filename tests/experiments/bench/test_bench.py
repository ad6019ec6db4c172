"""The benchmarks run, at a size that takes seconds; their arithmetic is right. Their figures are not tested here."""

import json
import sys
from argparse import Namespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experiments.bench import inference, memory, real_text, report, step, workload
from experiments.bench.pairs import interleave, ratio
from tests.representatives import representatives


@pytest.fixture
def small(monkeypatch):
    pytest.importorskip("peft")
    tiny = {"encoder_6x384": ("bert", 2, 64, 50), "decoder_6x384": ("llama", 1, 64, 50)}
    monkeypatch.setattr(workload, "MODELS", tiny)


def command(module, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["bench", *map(str, arguments)])
        return module.main()


@pytest.mark.usefixtures("small")
def test_step_measures_every_contender_on_every_model(tmp_path):
    target = tmp_path / "step.json"
    assert command(step, "--pairs", 3, "--rows", 2, "--tokens", 8, "--json", target) == 0
    found = json.loads(target.read_text())
    assert found["machine"]["threads"] == 1
    for model in found["models"].values():
        assert set(model["median_ms"]) == {*workload.CONTENDERS, "products_8", "products_12"}
        for which, value in model["bound"].items():
            other = which.partition(" / ")[2]
            assert value["median"] > 0.8 * model["ratios"][f"floor / {other}"]["median"]
        assert len(model["ratios"]) == len(step.RATIOS)
        for value in model["ratios"].values():
            assert 0 < value["low"] <= value["median"] <= value["high"]
        assert 0 < model["controller"]["adalora"]["penalty"] < 1


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_inference_measures_every_contender_at_every_batch(tmp_path):
    target = tmp_path / "inference.json"
    assert command(inference, "--rounds", 3, "--batches", "1x8", "2x8", "--json", target) == 0
    models = json.loads(target.read_text())["models"]
    assert set(models) == set(workload.MODELS)
    for results in models.values():
        assert [r["batch"] for r in results] == [[1, 8], [2, 8]]
        for found in results:
            assert set(found["median_ms"]) == set(inference.CONTENDERS)
            assert set(found["ratios"]) == {f"{which} / base" for which in inference.CONTENDERS[1:]}
            for value in found["ratios"].values():
                assert 0 < value["low"] <= value["median"] <= value["high"]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["encoder_6x384", "decoder_6x384"])
def test_inference_contenders_are_what_they_are_called(name):
    base, linears = workload.build(name)
    base.eval()
    inputs = {"input_ids": workload.batch(name, 2, 8, "cpu")["input_ids"]}
    models = {}
    for which in inference.CONTENDERS:
        torch.manual_seed(0)  # merged and lora draw the same factors
        models[which] = inference.contender(which, base, name, linears)
    logits = {which: model(**inputs).logits for which, model in models.items()}
    assert torch.equal(logits["base"], logits["base_again"])
    assert (logits["merged"] - logits["lora"]).norm() < 0.02 * (logits["lora"] - logits["base"]).norm()
    kinds = {which: [type(m) for m in model.modules()] for which, model in models.items()}
    assert kinds["merged"] == kinds["base"]  # so that the same operations run
    for which in ("lora", "adalora", "pfeiffer", "houlsby"):
        assert not torch.equal(logits[which], logits["base"])
        assert len(kinds[which]) > len(kinds["base"])


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_memory_counts(tmp_path):
    target = tmp_path / "memory.json"
    assert command(memory, "--rows", 2, "--tokens", 8, "--json", target) == 0
    for model in json.loads(target.read_text())["models"].values():
        sizes = model["bytes"]
        assert sizes["lora"]["saved"] <= sizes["peft_lora"]["saved"]
        assert sizes["adalora_compacted"]["state"] < sizes["adalora"]["state"] < sizes["peft_adalora"]["state"]
        assert sizes["full"]["state"] > sizes["lora"]["state"] > sizes["floor"]["state"]


@pytest.mark.parametrize("which", representatives(real_text.CONTENDERS, ["peft_lora", "adalora"]))
def test_every_contender_trains_on_the_rows_of_the_round(which, tmp_path):
    """The rows whose embeddings are looked up in each of three steps, in one pass or several."""
    pytest.importorskip("peft")
    cell = real_text.cell("rotten_tomatoes", 4, "fp32", 3, Namespace(tiny=True, data=None))
    expected = [sorted(tuple(cell.rows.tokens["input_ids"][i]) for i in rows) for rows in cell.order]
    steps = []

    def record(_, args):
        rows = [tuple(i for i in row if i != cell.built.tokenizer.pad_token_id) for row in args[0].tolist()]
        steps[-1] = sorted(steps[-1] + rows)

    cell.built.model.get_input_embeddings().register_forward_pre_hook(record)  # copied with the model
    with real_text.in_turns(real_text.loop(which, cell, str(tmp_path))) as step:
        for _ in range(3):
            steps.append([])
            step()
    assert steps == expected


@pytest.mark.slow
def test_real_text_measures_every_contender(tmp_path, capsys):
    pytest.importorskip("peft")
    target = tmp_path / "real_text.json"
    assert command(real_text, "--tiny", "--json", target) == 0
    found = json.loads(target.read_text())
    assert found["machine"]["threads"] == 1
    (cell,) = found["cells"]
    assert set(cell["seconds_per_100_rows"]) == set(cell["peak_mib"]) == set(real_text.CONTENDERS)
    assert len(cell["ratios"]) == len(real_text.RATIOS)
    assert min(cell["peak_mib"].values()) > 0
    for value in cell["ratios"].values():
        assert 0 < value["low"] <= value["median"] <= value["high"]
    assert command(report, target, tmp_path / "real_text.png") == 0
    assert f"| {cell['seconds_per_100_rows']['peft_lora']:.2f} |" in capsys.readouterr().out
    assert (tmp_path / "real_text.png").stat().st_size > 10_000


def test_a_loop_is_held_after_every_step_and_ends_where_it_is_held():
    parameter, ended = torch.nn.Parameter(torch.zeros(2)), []

    def training():
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        try:
            while True:
                parameter.grad = torch.ones(2)
                optimizer.step()
        finally:
            ended.append(parameter[0].item())

    with real_text.in_turns(training) as step:
        for count in (1, 2, 3):
            step()
            torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0).step()  # of another loop
            assert parameter.tolist() == [-count] * 2
        assert not ended
    assert ended == [-3]
    with real_text.in_turns(lambda: 1 / 0) as step, pytest.raises(ZeroDivisionError):
        step()


@pytest.mark.usefixtures("small")
def test_the_adaptive_contender_masks_in_every_step():
    base, linears = workload.build("encoder_6x384")
    work = workload.contender("adalora", base, linears, workload.batch("encoder_6x384", 2, 8, "cpu"))
    controller = work.optimizer.adarank_controller
    for _ in range(3):
        work.step()
        assert controller.last_allocation is None or controller.last_allocation.step == controller.step - 1
    assert controller.last_allocation.kept == controller.last_allocation.budget < controller.bank.triplets
    parts = workload.controller_seconds(work, 3)
    assert parts.keys() == {"penalty", "allocator"}
    assert min(parts.values()) > 0
    assert controller.seconds is None  # steps that are timed as a whole are not interrupted


def test_rounds_are_interleaved_and_their_order_alternates():
    order = []
    clock = iter(range(100))
    interleave({name: lambda n=name: order.append(n) or float(next(clock)) for name in "abc"}, rounds=2, warmup=1)
    assert "".join(order) == "cbaabccba"


@given(st.lists(st.floats(0.1, 10), min_size=8, max_size=80), st.floats(0.5, 2.0))
def test_a_constant_ratio_is_found_exactly(theirs, factor):
    found = ratio([factor * t for t in theirs], theirs)
    assert found["median"] == pytest.approx(factor)
    assert found["low"] == pytest.approx(found["high"])


def test_the_interval_covers_the_median_about_as_often_as_it_says():
    draw = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        found = ratio(np.exp(draw.normal(size=40)), np.ones(40))
        covered += found["low"] <= 1.0 <= found["high"]
    assert covered / 400 > 0.92
