"""The sweep benchmark runs at a size of seconds, and its arithmetic is right. Its figures are not tested here."""

import json
import sys
from pathlib import Path

import pytest

from experiments.bench import sweep


def test_the_shares_and_the_ratio(tmp_path, monkeypatch):
    """With commands that take a known time: sequential 8 s, two workers 4 s; 10 s of which 7 train, 5 s with the
    cache."""
    caches = set()

    def command(words, out, threads, cache):
        if "-m" in words:
            for i in range(3):
                (out / str(i)).mkdir(parents=True)
                (out / str(i) / "summary.json").touch()
            return (4.0 if "hydra/launcher=joblib" in words else 8.0), 0.0
        first = not cache.exists()
        cache.mkdir(exist_ok=True)
        caches.add(cache)
        return (10.0 if first else 8.5), 7.0

    monkeypatch.setattr(sweep, "command", command)
    monkeypatch.setattr(sweep, "imports", lambda least: {"torch": 2.0})
    target = tmp_path / "found.json"
    monkeypatch.setattr(
        sys, "argv", ["sweep", "--jobs", "3", "--rounds", "2", "--whole", "30", "--json", str(target), "tiny=true"]
    )
    assert sweep.main() == 0
    found = json.loads(target.read_text())
    assert found["sweep"]["ratio"] == 0.5
    assert found["sweep"]["seconds"] == {"sequential": [8.0, 8.0], "two_workers": [4.0, 4.0]}
    assert found["start"]["seconds"] == {"empty_cache": [3.0, 3.0], "full_cache": [1.5, 1.5]}
    assert found["start"]["share"] == {"empty_cache": pytest.approx(0.1), "full_cache": pytest.approx(0.05)}
    assert found["settings"] == ["tiny=true"]
    assert len(caches) == 1


@pytest.mark.slow
def test_a_real_run_is_timed_and_fills_the_cache(tmp_path):
    out, cache = tmp_path / "out", tmp_path / "cache"
    whole, training = sweep.command(["method=head", "tiny=true", "train.steps=2"], out, 1, cache)
    assert 0 < training < whole
    assert len(list(cache.glob("*.safetensors"))) == 3
    with pytest.raises(SystemExit, match="ended with status 2"):
        sweep.command(["method=nothing"], out, 1, cache)


@pytest.mark.slow
def test_the_whole_at_a_small_size(tmp_path, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    target = tmp_path / "found.json"
    words = ["method=head", "tiny=true", "train.steps=2"]
    monkeypatch.setattr(sys, "argv", ["sweep", "--jobs", "2", "--rounds", "1", "--json", str(target), *words])
    assert sweep.main() == 0
    found = json.loads(Path(target).read_text())
    assert found["sweep"]["ratio"] > 0
    assert "torch" in found["imports"]
    assert not {"sklearn", "scipy", "matplotlib", "wandb", "pandas"} & found["imports"].keys()
