"""The GPU benchmark runs on a CPU, with tapes for graphs, so that it does not fail on a GPU for anything else."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from experiments.bench import gpu


def command(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["gpu.py", *map(str, arguments)])
        return gpu.main()


def run(target, *arguments):
    assert command("--device", "cpu", "--tiny", "--json", target, *arguments) == 0
    return json.loads(target.read_text())


def check(case, contenders):
    assert set(case["steps"]) == set(contenders)
    for name, passes in case["steps"].items():
        assert len(passes) == 2
        for found in passes:
            assert len(found["losses"]) == gpu.CHECKED
            assert min(found["ms"]) > 0
            assert not found["syncs"]
            assert found["graphs"] >= 2 if name.endswith("+captured") else not found["graphs"]
        assert passes[0]["losses"] == passes[1]["losses"]
        assert passes[0]["weights"] == passes[1]["weights"]
    assert case["losses"]
    for pair, comparison in case["losses"].items():
        assert comparison["passed"]
        if " = " in pair:
            assert comparison["difference"] == 0
            assert comparison["same_weights"]
    hashes = {which: passes[0]["weights"] for which, passes in case["steps"].items()}
    assert hashes["adalora+captured"] != hashes["adalora"]  # the hash sees what rounding does


def test_captured_losses_are_the_fed_ones_in_both_passes(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "CHECKED", 5)  # two steps that warm up, one that records for each length, one replay
    monkeypatch.setattr(gpu, "HOST_STEPS", 1)
    monkeypatch.setattr(gpu, "tiny", lambda case: replace(case, model=("bert", 1, 128, 50), rows=2, lengths=(4, 8)))
    contenders = ["adalora", "adalora+fed", "adalora+captured"]
    options = ("--cases", "encoder_6x384", "--steps", 1)
    found = run(tmp_path / "gpu.json", *options, "--contenders", *contenders)
    case = found["cases"]["encoder_6x384"]
    check(case, contenders)
    assert set(case["losses"]) == {
        "adalora+captured = adalora+fed",
        "adalora+captured ~ adalora",
        "adalora+fed ~ adalora",
    }
    assert set(case["drift"]) == set(contenders)


@pytest.mark.slow
def test_every_contender_passes_on_every_case(tmp_path):
    pytest.importorskip("peft")
    found = run(tmp_path / "gpu.json", "--budget", 10_000)
    assert set(found["cases"]) == set(gpu.CASES)
    for name, case in found["cases"].items():
        check(case, gpu.STEPS)
        assert len(case["aims"]) == len(gpu.AIMS[name])
        assert not case["skipped"]


def test_what_the_budget_leaves_out_is_listed(tmp_path):
    found = run(tmp_path / "gpu.json", "--budget", 0, "--contenders", "lora", "--cases", "decoder_1b")
    assert found["cases"]["decoder_1b"] == {"steps": {}, "skipped": ["lora, pass 1", "lora, pass 2"]}


def test_a_summary_pairs_only_passes_that_both_contenders_have():
    loss = {"losses": [1.0] * gpu.CHECKED, "weights": "a"}
    steps = {
        "peft_lora": [loss | {"ms": [4.0, 8.0]}, loss | {"ms": [8.0, 16.0]}],
        "adalora+captured": [loss | {"ms": [1.0, 2.0]}],
        "lora+captured": [{"error": "RuntimeError: out of memory"}, loss | {"ms": [1.0, 2.0]}],
    }
    found = gpu.summary("decoder_1b", gpu.CASES["decoder_1b"], steps)
    assert found["aims"] == {
        "adalora+captured / peft_lora": {"at_most": 0.5, "median": 0.25, "low": 0.25, "high": 0.25, "met": True}
    }
    assert found["drift"] == {"peft_lora": 2.0}
    assert gpu.failures({"steps": steps, **found}) == ["lora+captured: RuntimeError: out of memory"]


def test_what_failed_is_said():
    steps = {
        "lora+captured": [{"losses": [1.0, 2.0], "weights": "a", "syncs": ["nonzero"]}],
        "lora+fed": [{"losses": [1.0, 2.5], "weights": "a", "syncs": []}],
        "lora": [{"losses": [1.0, 2.5], "weights": "b", "syncs": []}],
        "full+captured": [{"losses": [1.0], "weights": "a", "syncs": []}],
        "full": [{"losses": [1.5], "weights": "b", "syncs": []}],
        "adalora+captured": [{"losses": [1.0], "weights": "a", "syncs": []}],
        "adalora+fed": [{"losses": [1.0], "weights": "b", "syncs": []}],
    }
    found = {"steps": steps, "losses": gpu.compare(gpu.CASES["decoder_1b"], steps)}
    assert gpu.failures(found) == [
        "lora+captured: would wait for the device inside a graph (nonzero)",
        "lora+captured = lora+fed: losses differ by up to 2.0e-01, and weights are the same",
        "lora+captured ~ lora: losses differ by up to 2.0e-01, and weights are not the same",
        "full+captured = full: losses differ by up to 3.3e-01, and weights are not the same",
        "adalora+captured = adalora+fed: losses differ by up to 0.0e+00, and weights are not the same",
    ]


def test_a_device_that_cannot_be_measured_is_refused(capsys):
    refused = [["--device", "cpu"]] + ([] if torch.cuda.is_available() else [["--device", "cuda"]])
    for arguments in refused:
        with pytest.raises(SystemExit) as error:
            command(*arguments)
        assert error.value.code == 2
        assert "--tiny" in capsys.readouterr().err
