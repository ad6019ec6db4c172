"""The simulation of looks: its shares add up, errors are rare, and a large effect ends early."""

import json
import sys
from pathlib import Path

import pytest

from experiments.bench import looks

RESULTS = Path(__file__).resolve().parents[3] / "experiments" / "results" / "looks.json"


def test_it_counts_every_simulation_once(tmp_path, monkeypatch):
    target = tmp_path / "looks.json"
    words = ["--simulations", "300", "--claims", "2", "--effects", "0", "2", "--json", str(target)]
    monkeypatch.setattr(sys, "argv", ["looks.py", *words])
    assert looks.main() == 0
    (family,) = json.loads(target.read_text())["families"]
    nothing, large, heavy = family["cells"]
    for cell in family["cells"]:
        assert sum(cell["words"].values()) == pytest.approx(1)
        assert 6 <= cell["mean_seeds"] <= 20
    assert large["words"]["better"] == 1
    assert large["mean_seeds"] < 12
    for cell in (nothing, heavy):
        assert cell["words"].get("better", 0) + cell["words"].get("worse", 0) < 0.07


def test_the_committed_simulation_keeps_its_errors():
    found = json.loads(RESULTS.read_text())
    assert found["simulations"] >= 4000
    for family in found["families"]:
        level = found["alpha"] / family["claims"]
        chance = 3 * (level / found["simulations"]) ** 0.5
        for cell in family["cells"]:
            words = cell["words"]
            if cell["effect"] == 0:
                assert words.get("better", 0) + words.get("worse", 0) <= level + chance
            elif cell["effect"] >= found["margin"]:
                assert words.get("within the margin", 0) + words.get("worse", 0) <= level + chance
