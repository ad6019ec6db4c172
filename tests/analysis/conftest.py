"""Run folders as docs/runs.md describes them, written without the harness: analysis reads files only."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

KINDS = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
LAYERS = 6
HEAD = 770
TOTAL = 22_713_986
SIZES = dict.fromkeys(KINDS, 385 + 384) | {"intermediate.dense": 385 + 1536, "output.dense": 385 + 1536}
METHODS = {"full": 1e-4, "lora": 2e-3, "adalora": 1e-2}
LEVEL = {"full": 0.79, "lora": 0.775, "adalora": 0.782}


def modules() -> list[str]:
    return [f"bert.encoder.layer.{layer}.{kind}" for layer in range(LAYERS) for kind in KINDS]


def final_ranks(rank: int, seed: int) -> dict[str, int]:
    """Ranks that differ between modules and seeds and sum to rank * modules."""
    names = modules()
    ranks = np.full(len(names), rank)
    generator = np.random.default_rng(seed)
    for taker in generator.permutation(len(names))[: len(names) // 2]:
        giver = int(generator.choice(np.flatnonzero(ranks > 0)))
        moved = int(min(ranks[giver], rank // 2))
        ranks[giver] -= moved
        ranks[taker] += moved
    return dict(zip(names, map(int, ranks), strict=True))


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_run(
    out: Path,
    method: str = "lora",
    seed: int = 0,
    rank: int = 8,
    /,
    *,
    digest: str | None = None,
    config: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Write one finished run and return its folder.

    `config` is merged over config.yaml (dotted keys); `changes` over summary.json, with "metric__test=…" for a nested
    value.
    """
    import yaml

    lr = METHODS.get(method, 1e-3)
    flat = {
        "method": method,
        "rank": rank,
        "seed": seed,
        "targets": "all",
        "out": "runs",
        "train.lr": lr,
        "train.steps": 100,
    } | (config or {})
    identity = json.dumps({key: value for key, value in flat.items() if key != "seed"}, sort_keys=True)
    digest = digest or hashlib.sha256(identity.encode()).hexdigest()[:8]
    folder = out / f"{method}-{digest}-s{seed}"
    folder.mkdir(parents=True)
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        place = nested
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(nested))

    generator = np.random.default_rng([seed, rank, len(method)])
    score = round(LEVEL.get(method, 0.77) + 0.002 * np.log2(rank) + float(generator.normal(0, 0.004)), 4)
    adapter = kept = 0
    ranks = None
    if method != "full":
        start = -(-3 * rank // 2) if method != "lora" else rank
        final = final_ranks(rank, seed) if method != "lora" else dict.fromkeys(modules(), rank)
        adapter = sum(start * SIZES[name.split(".", 4)[4]] for name in final)
        kept = sum(r * SIZES[name.split(".", 4)[4]] for name, r in final.items())
        ranks = {"initial": start, "budget": rank, "budget_triplets": rank * len(final), "final": final}
        if method != "lora":
            falls = [(step, max(rank, start - (start - rank) * (step - 10) / 60)) for step in range(10, 101, 10)]
            write_lines(
                folder / "allocations.jsonl",
                [{"step": s, "budget": int(b * 36), "kept": int(b * 36), "ranks": final} for s, b in falls],
            )
    summary: dict[str, Any] = {
        "status": "finished", "error": None, "method": method, "model": "minilm_l6", "task": "rotten_tomatoes",
        "targets": "all", "seed": seed, "steps": 100,
        "metric": {"name": "accuracy", "higher_is_better": True, "best": round(score + 0.01, 4), "best_step": 100,
                   "last": round(score + 0.005, 4), "test": score},
        "rank": ranks,
        "parameters": {"total": TOTAL + adapter, "trainable": HEAD + adapter if ranks else TOTAL,
                       "adapter": adapter, "kept": kept},
        "scale": 2.0,
        "time": {"train_s": 51.0, "step_ms": {"full": 700.0, "lora": 500.0}.get(method, 620.0) + seed, "eval_s": 9.0},
        "memory": {"peak_mib": 812.4},
        "device": "cpu", "versions": {"torch": "2.13.0"}, "commit": "abc", "dirty": False, "recipe": 1,
    }  # fmt: skip
    for key, value in changes.items():
        *path, last = key.split("__")
        place = summary
        for part in path:
            place = place[part]
        place[last] = value
    (folder / "summary.json").write_text(json.dumps(summary))
    state = {
        "state": "finished",
        "host": "h",
        "pid": 1,
        "heartbeat": "2026-01-01T00:00:00Z",
        "step": 100,
        "error": None,
    }
    (folder / "status.json").write_text(json.dumps(state))

    records: list[dict[str, Any]] = []
    for step in range(10, 101, 10):
        loss = 0.69 * np.exp(-step / 90) + 0.1 + float(generator.normal(0, 0.015))
        more = {"budget": 288, "orthogonality": 0.6 + step / 200} if method not in ("full", "lora") else {}
        records.append({"step": step, "split": "train", "loss": round(loss, 4), "lr": lr, **more})
        if step % 25 == 0 or step in (20, 40, 60, 80, 100):
            value = score + 0.005 - 0.25 * float(np.exp(-step / 25)) + 0.25 * float(np.exp(-4))
            records.append({"step": step, "split": "dev", "accuracy": round(value, 4), "loss": 0.5})
    write_lines(folder / "metrics.jsonl", [*records, {"step": 100, "split": "test", "accuracy": score}])
    return folder


def map_settings(source: str | Path, shuffle: str = "none", shuffle_seed: int = 0) -> dict[str, Any]:
    """What config.yaml says of a run with the ranks of another: for write_run(config=…)."""
    ranks = {"ranks_from": str(source), "ranks_shuffle": shuffle, "ranks_shuffle_seed": shuffle_seed}
    return {"allocator": None, "score": None, "schedule": None, **ranks}


def write_quickstart(out: Path, seeds: int = 2, ranks: tuple[int, ...] = (8,)) -> Path:
    """full, LoRA and AdaLoRA, `seeds` seeds each."""
    for seed in range(seeds):
        write_run(out, "full", seed)
        for rank in ranks:
            write_run(out, "lora", seed, rank)
            write_run(out, "adalora", seed, rank)
    return out


@pytest.fixture(name="write_run")
def write_run_fixture() -> Callable[..., Path]:
    return write_run


@pytest.fixture(name="write_quickstart")
def write_quickstart_fixture() -> Callable[..., Path]:
    return write_quickstart


@pytest.fixture
def quickstart(tmp_path: Path) -> Path:
    """full, LoRA 8 and AdaLoRA 12 → 8, two seeds each."""
    return write_quickstart(tmp_path / "runs")


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without figures, for tests that do not look at them: drawing takes seconds."""
    from analysis import figures

    monkeypatch.setattr(figures, "figures", lambda *_: iter(()))
