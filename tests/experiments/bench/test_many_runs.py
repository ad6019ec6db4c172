"""The reading benchmark runs on a sweep of seconds and counts every folder it made. Its figures are not tested here."""

import json
import os
import sys

import pytest

from experiments.bench import many_runs

CONFIG = {"method": "adalora", "rank": 2, "seed": 0, "train": {"lr": 0.01}, "penalty": {"gamma": 0.1}}


@pytest.mark.slow
def test_a_sweep_is_written_read_and_timed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(many_runs, "settings", lambda: CONFIG)
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None, raising=False)
    target = tmp_path / "found.json"
    words = ["--runs", "240", "--seeds", "6", "--allocations", "3", "--rounds", "2", "--json", str(target)]
    monkeypatch.setattr(sys, "argv", ["many_runs", *words])
    assert many_runs.main() == 0
    (found,) = json.loads(target.read_text())["sweeps"].values()
    assert found["runs"] == {"corrupt": 3, "failed": 3, "finished": 228, "incomplete": 6}  # of 12 broken ones
    assert found["rows"] == 40
    assert len(found["rounds"]) == 2
    for key, value in found["median"].items():
        assert value == pytest.approx(sum(one[key] for one in found["rounds"]) / 2)
    parts = [found["rounds"][0][key] for key in ("import_s", "load_s", "text_s")]
    assert sum(parts) == pytest.approx(found["rounds"][0]["analysis_s"], rel=0.05)
    assert found["rounds"][0]["page_s"] > found["rounds"][0]["analysis_s"]
    assert found["page_bytes"] > 100_000
    assert "40 configurations x 6 seeds" in capsys.readouterr().out


def test_the_seeds_of_a_configuration_share_their_records(tmp_path):
    many_runs.write_sweep(tmp_path, CONFIG, configurations=2, seeds=3, allocations=4)
    lora, adalora = (sorted(tmp_path.glob(f"{method}-*")) for method in ("lora", "adalora"))
    assert (len(lora), len(adalora)) == (3, 3)
    assert not any((folder / "allocations.jsonl").exists() for folder in lora)
    assert all((folder / "metrics.jsonl").exists() for folder in (*lora, *adalora))
    assert {len((folder / "allocations.jsonl").read_text().splitlines()) for folder in adalora} == {4}
    assert {path.name for path in tmp_path.iterdir()} == {folder.name for folder in (*lora, *adalora)}
