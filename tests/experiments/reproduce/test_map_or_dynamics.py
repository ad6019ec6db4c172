"""The whole comparison, tiny and in this process; made again it trains nothing."""

import json

import pytest

from experiments.reproduce import map_or_dynamics
from tests.experiments.test_run import main


def call(monkeypatch, *arguments):
    """The script with its runs in this process; (exit status, their command lines)."""
    commands = []

    def run(words):
        commands.append(words)
        return main(words)

    monkeypatch.setattr(map_or_dynamics, "run", run)
    monkeypatch.setattr("sys.argv", ["map_or_dynamics.py", *map(str, arguments)])
    return map_or_dynamics.main(), commands


@pytest.mark.slow
def test_the_comparison_is_made_and_goes_on_from_what_is_there(monkeypatch, tmp_path, capsys):
    out, target = tmp_path / "runs", tmp_path / "found.json"
    rest = ["--shuffles", 1, "--adaptive", "init_rank=4", "--out", out, "--json", target,
            "tiny=true", "targets=qkv", "rank=1", "train.steps=4"]  # fmt: skip
    assert call(monkeypatch, "--seeds", 1, *rest)[0] == 0
    before = {p: p.stat().st_mtime_ns for p in out.glob("*/summary.json")}
    assert len(before) == 4
    capsys.readouterr()
    status, commands = call(monkeypatch, "--seeds", 0, 1, *rest)
    assert status == 0
    assert capsys.readouterr().out.count("finished already") == 4
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert "init_rank=4" in commands[0]
    assert not any("init_rank=4" in command for command in commands[1:])

    found = json.loads(target.read_text())
    runs = found["runs"]
    assert sorted((r["arm"], r["seed"], r["shuffle"]) for r in runs if r["shuffle"] is None) == [
        (arm, seed, None) for arm in ("adaptive", "none") for seed in (0, 1)
    ]
    assert sorted((r["arm"], r["seed"], r["shuffle"]) for r in runs if r["shuffle"] is not None) == [
        (arm, seed, 0) for arm in ("all", "within_family") for seed in (0, 1)
    ]
    adaptive = {r["seed"]: r for r in runs if r["arm"] == "adaptive"}
    for r in runs:
        own = adaptive[r["seed"]]
        assert sorted(r["ranks"]) == sorted(own["ranks"])
        assert r["source"] == (None if r is own else own["run"])
        if r["arm"] == "none":
            assert r["ranks"] == own["ranks"]
    test = {(r["arm"], r["seed"]): r["test"] for r in runs}
    mean = sum(test["adaptive", seed] - test["none", seed] for seed in (0, 1)) / 2
    assert len(found["differences"]) == 5
    (row,) = [row for row in found["differences"] if row[0] == "adalora 4 → 1, adaptive − its map"]
    cells = dict(zip(found["header"], row, strict=True))
    assert float(cells["difference"]) == pytest.approx(mean, abs=1e-4)
    assert (cells["95% interval"], cells["pairs"]) == ("–", "2"), "two pairs have no interval"


def test_what_cannot_be_compared_is_one_sentence(monkeypatch, tmp_path, capsys):
    status, commands = call(monkeypatch, "--shuffles", 0, "--out", tmp_path, "--json", tmp_path / "f.json")
    assert (status, commands) == (2, [])
    assert capsys.readouterr().err == "error: --shuffles must be a whole number of at least 1 (got 0)\n"
    with pytest.raises(map_or_dynamics.SettingError, match="holds 0 of seed 7"):
        map_or_dynamics.source(tmp_path, "adalora", 7)
