"""The count of architectures in which `targets` finds the right modules: what it measures, and the committed result."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from adarank.errors import SettingError
from adarank.targets import find_targets
from experiments.architectures import BY_HAND, architectures, build, by_hand, by_rule, measure, summary

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "experiments/results/architectures.json"
# One of every kind, among those that the list has and those that only the rules judge.
SOME = {
    "mpnet": "correct", "modernbert": "correct", "qwen3": "correct", "gemma3_text": "correct", "phi3": "correct",
    "mixtral": "correct", "qwen3_next": "correct", "ctrl": "correct", "dinov2": "correct", "clip": "correct",
    "whisper": "correct", "gemma3n_text": "wrong", "xlnet": "refused", "mamba": "attention-free",
}  # fmt: skip


def test_a_dozen_architectures():
    entries = measure(SOME)
    assert {name: entry["state"] for name, entry in entries.items()} == SOME
    assert entries["phi3"]["found"] == {
        "qkv": ["self_attn.qkv_proj"], "o": ["self_attn.o_proj"], "rest": ["mlp.gate_up_proj", "mlp.down_proj"],
    }  # fmt: skip
    assert entries["ctrl"]["judged"] == "by rule"
    assert entries["gemma3n_text"]["wrong"].keys() == {"all"}  # lists of embeddings count as blocks
    vision = summary(entries)["vision"]
    assert (vision["correct"], vision["correct of those with attention"]) == (2, 1.0)


def found_in(model):
    """Of a Llama."""
    qkv = [f"self_attn.{letter}_proj" for letter in "qkv"]
    chosen = {"qkv": qkv, "attention": [*qkv, "self_attn.o_proj"], "all": "all-linear"}
    return {name: find_targets(model, targets) for name, targets in chosen.items()}


def test_both_judges_see_what_is_wrong():
    model = build("llama", "AutoModelForCausalLM")
    truth = yaml.safe_load(BY_HAND.read_text())["families"]["llama"]
    found = found_in(model)
    assert by_rule(model, found) == by_hand(model, found, truth) == {}
    first, output = found["qkv"][0], found["attention"][3]
    assert (first, output) == ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.o_proj")
    faults = {
        "a block without its query": ({"qkv": found["qkv"][1:]}, "qkv"),
        "a matrix of the MLP": ({"qkv": [*found["qkv"], *(n for n in found["all"] if "up_proj" in n)]}, "qkv"),
        "no output projection": ({"attention": found["qkv"]}, "attention"),
        "a block without one": ({"attention": [n for n in found["attention"] if n != output]}, "attention"),
        "not all linears": ({"all": [n for n in found["all"] if "down_proj" not in n]}, "all"),
    }
    for fault, (changed, shorthand) in faults.items():
        for wrong in (by_rule(model, {**found, **changed}), by_hand(model, {**found, **changed}, truth)):
            assert shorthand in wrong, fault


def test_the_list_has_forty_architectures_that_exist():
    truth = yaml.safe_load(BY_HAND.read_text())
    assert len(truth["models"]) >= 40
    assert truth["models"].keys() <= architectures().keys()


def test_the_committed_result_is_nine_tenths_or_better():
    result = json.loads(RESULT.read_text())
    assert result["summary"] == summary(result["architectures"])
    assert result["summary"]["causal_lm and encoder"]["correct of those with attention"] >= 0.9
    for name in ("mpnet", "qwen3", "gemma3_text", "smollm3", "olmo2", "granite", "phi", "mixtral", "modernbert",
                 "dinov2", "clip", "whisper"):  # fmt: skip
        assert result["architectures"][name]["state"] == "correct", name
    for name, entry in result["architectures"].items():
        if entry["state"] == "refused":
            assert any(end in entry["refused"]["qkv"] for end in ("with names of its blocks (", "leave it out")), name


def test_the_table_in_the_docs_is_the_committed_result():
    page = (ROOT / "docs/ecosystem.md").read_text()
    result = json.loads(RESULT.read_text())
    for counts in result["summary"].values():
        correct, refused, wrong, free, unbuilt = (
            counts.get(state, 0) for state in ("correct", "refused", "wrong", "attention-free", "not built")
        )
        assert f"| {correct} of {correct + refused + wrong} | {refused} | {wrong} | {free} | {unbuilt} |" in page
    by_hand = sum(entry["judged"] == "by hand" for entry in result["architectures"].values())
    assert f"A list written by hand is the truth for {by_hand} of them" in page


def test_an_unknown_architecture_is_refused():
    with pytest.raises(SettingError, match=r"^no_such_model is not a text or vision architecture of this version of"):
        measure(["no_such_model"])


@pytest.mark.slow
def test_all_architectures_are_as_committed(tmp_path):
    file = tmp_path / "found.json"
    subprocess.run(
        [sys.executable, "experiments/architectures.py", "--json", file], cwd=ROOT, check=True, capture_output=True
    )
    found, committed = json.loads(file.read_text()), json.loads(RESULT.read_text())
    assert found["summary"]["causal_lm and encoder"]["correct of those with attention"] >= 0.9
    if committed["machine"]["versions"]["transformers"] == version("transformers"):
        states = [{n: e["state"] for n, e in r["architectures"].items()} for r in (found, committed)]
        assert states[0] == states[1]
