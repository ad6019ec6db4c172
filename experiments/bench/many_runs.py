"""The time to read, judge and draw a large sweep: the terminal's tables, then the whole page, on one core.

    python experiments/bench/many_runs.py --json experiments/results/report_cpu.json

It creates the folders of a sweep (configurations × seeds, one in twenty failed, half-written, damaged or empty) and
reads them in separate processes, as a user does, so that interpreter and imports count. Times are CPU seconds, the
median over the rounds. analysis_s: until the terminal's text is complete; page_s: everything, with the page and its
files on disk.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.bench.pairs import parser, write

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
         "intermediate.dense", "output.dense")  # fmt: skip
MODULES = [f"bert.encoder.layer.{layer}.{kind}" for layer in range(6) for kind in KINDS]
METHODS = ("lora", "adalora", "sora", "eva", "increlora")
BROKEN: tuple[dict[str, str | None], ...] = (
    {"status.json": '{"state": "failed", "error": "out of memory"}'},
    {"summary.json": '{"status": "fini'},
    {"summary.json": None},
    {"config.yaml": None, "status.json": None, "summary.json": None},
)
READ = """
import json, sys, time
from pathlib import Path
from analysis.report import as_text, load, write_report
imported = time.process_time()
out = Path(sys.argv[1])
report = load(out)
loaded = time.process_time()
printed = as_text(report)
analysed = time.process_time()
page = write_report(out, report)
states = [run.state for run in report.runs]
print(json.dumps({
    "import_s": imported, "load_s": loaded - imported, "text_s": analysed - loaded, "analysis_s": analysed,
    "page_s": time.process_time(), "characters": len(printed), "page_bytes": page.stat().st_size,
    "rows": sum(len(table.rows) for table in report.tables),
    "runs": {state: states.count(state) for state in sorted(set(states))}}))
"""


def write_sweep(out: Path, config: dict[str, Any], configurations: int, seeds: int, allocations: int) -> None:
    """Write run folders like those of the harness, with the modules of MiniLM-L6 and records of the usual length."""
    generator = np.random.default_rng(0)
    records, metrics = out / "allocations.jsonl", out / "metrics.jsonl"
    metrics.write_text("".join(_metrics(step, generator) for step in range(10, 1001, 10)), encoding="utf-8")
    for place in range(configurations):
        method, rank, lr = METHODS[place % 5], (2, 4, 8, 16)[place // 5 % 4], 10.0 ** -(1 + place // 20 % 5)
        changed = config | {"method": method, "rank": rank, "train": config["train"] | {"lr": lr}}
        changed["penalty"] = config["penalty"] | {"gamma": place // 100}
        start = rank if method == "lora" else 3 * rank // 2
        if start > rank:
            records.unlink(missing_ok=True)  # the seeds share the file, because only one of them is read
            records.write_text(
                "".join(_record(step, start, generator) for step in range(allocations)), encoding="utf-8"
            )
        shared = yaml.safe_dump({key: value for key, value in changed.items() if key != "seed"})
        for seed in range(seeds):
            folder = out / f"{method}-{place:010x}-s{seed}"
            folder.mkdir()
            score = float(generator.normal(0.8, 0.01))
            contents: dict[str, str | None] = {
                "config.yaml": f"{shared}seed: {seed}\n",
                "status.json": '{"state": "finished", "error": null}',
                "summary.json": json.dumps(_summary(method, rank, start, seed, score, generator)),
            }
            if (place * seeds + seed) % 20 == 7:
                contents |= BROKEN[(place * seeds + seed) // 20 % len(BROKEN)]
            for name, content in contents.items():
                if content is not None:
                    (folder / name).write_text(content, encoding="utf-8")
            if start > rank and contents["status.json"] is not None:
                (folder / "allocations.jsonl").hardlink_to(records)
            if contents["status.json"] is not None:
                (folder / "metrics.jsonl").hardlink_to(metrics)
    for file in (records, metrics):
        file.unlink(missing_ok=True)


def _metrics(step: int, generator: np.random.Generator) -> str:
    """A line of training loss and, every hundred steps, one of dev."""
    train = {"step": step, "split": "train", "loss": float(generator.random()), "lr": 0.001, "orthogonality": 0.1}
    dev = {"step": step, "split": "dev", "accuracy": float(generator.random()), "loss": 0.5}
    return "".join(json.dumps(record) + "\n" for record in (train, dev)[: 2 if step % 100 == 0 else 1])


def _record(step: int, rank: int, generator: np.random.Generator) -> str:
    ranks = {module: int(generator.integers(0, rank + 1)) for module in MODULES}
    quantiles = {module: np.sort(generator.random(5)).tolist() for module in MODULES}
    kept = sum(ranks.values())
    counts = {"step": step, "budget": kept, "unit": "triplets", "kept": kept, "parameters": 1000 * kept, "slack": 0}
    return json.dumps(counts | {"ranks": ranks, "score_quantiles": quantiles}) + "\n"


def _summary(
    method: str, rank: int, start: int, seed: int, score: float, generator: np.random.Generator
) -> dict[str, Any]:
    final = {module: rank if start == rank else int(generator.integers(0, 2 * rank + 1)) for module in MODULES}
    return {
        "status": "finished", "error": None, "method": method, "model": "minilm_l6", "task": "rotten_tomatoes",
        "targets": "all", "seed": seed, "steps": 100,
        "metric": {"name": "accuracy", "higher_is_better": True, "best": score, "best_step": 100, "last": score,
                   "test": score},
        "rank": {"initial": start, "budget": rank, "budget_triplets": rank * len(MODULES), "final": final},
        "parameters": {"total": 23_000_000, "trainable": 40_000 * start,
                       "adapter": 39_000 * start, "kept": 39_000 * rank},
        "scale": 2.0, "time": {"train_s": 70.0, "step_ms": 700.0, "eval_s": 20.0}, "memory": {"peak_mib": 1000.0},
        "device": "cpu", "recipe": 1,
    }  # fmt: skip


def read(out: Path) -> dict[str, Any]:
    """The times that a separate process reports for reading `out` on one core; fails if it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    started = time.perf_counter()
    command = [sys.executable, "-c", READ, str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return {**json.loads(done.stdout), "wall_s": time.perf_counter() - started}


def settings() -> dict[str, Any]:
    """A run's config.yaml, as the harness writes it."""
    words = [str(ROOT / "experiments" / "run.py"), "method=adalora", "tiny=true", "--cfg", "job", "--resolve"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True)
    config: dict[str, Any] = yaml.safe_load(done.stdout)
    return config


def measure(config: dict[str, Any], configurations: int, seeds: int, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        write_sweep(Path(folder), config, configurations, seeds, options.allocations)
        read(Path(folder))  # fills the cache of the file system
        rounds = [read(Path(folder)) for _ in range(options.rounds)]
    timed = {key: statistics.median(one[key] for one in rounds) for key in rounds[0] if key.endswith("_s")}
    same = {key: rounds[0][key] for key in ("runs", "rows", "page_bytes")}
    return {**same, "median": timed, "rounds": rounds}


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--runs", type=int, default=3000)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[10, 30], help="numbers of seeds, one sweep each")
    arguments.add_argument("--allocations", type=int, default=75, help="records per adaptive run")
    arguments.add_argument("--rounds", type=int, default=5)
    options = arguments.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    config, sweeps = settings(), {}
    for seeds in options.seeds:
        name = f"{options.runs // seeds} configurations x {seeds} seeds"
        sweeps[name] = measure(config, options.runs // seeds, seeds, options)
        print(name, json.dumps({key: value for key, value in sweeps[name].items() if key != "rounds"}, indent=2))
    write(options, ["allocations"], sweeps=sweeps)
    return 0


if __name__ == "__main__":
    sys.exit(main())
