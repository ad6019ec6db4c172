"""The cost of a sweep's job beyond its training: starting up, and waiting for the other worker.

    python experiments/bench/sweep.py --json experiments/results/sweep_cpu.json

Both measurements use separate processes, like a user. `sweep` runs the same jobs (one seed each) one after the other
and with two workers (hydra/launcher=joblib), with the same number of threads per job, once each per round in
alternating order, and reports the ratio of the times. `start` measures the time from the command to the first step
(imports, model, tokenised data) of one run of the model and task, with an empty cache and with a full one, as a share
of a run of `--whole` seconds.
"""

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from adarank.runs.files import read_json
from experiments.bench.pairs import parser, write

ROOT = Path(__file__).resolve().parents[2]
WORKERS = {"sequential": [], "two_workers": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]}


def command(words: list[str], out: Path, threads: int, cache: Path) -> tuple[float, float]:
    """(total seconds, seconds of training and evaluation by the runs' own records) of run.py; fails if it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "ADARANK_CACHE": str(cache)}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(ROOT / "experiments" / "run.py"), *words, f"out={out}"],
        env=environment,
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"error: {' '.join(words)} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    times = [read_json(path)["time"] for path in out.glob("*/summary.json")]
    return seconds, sum(time["train_s"] + time["eval_s"] for time in times)


def sweep(words: list[str], options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds of the sweep, by kind and round, and the ratio of the medians."""
    jobs = ["-m", *words, f"seed=range(0,{options.jobs})"]
    found: dict[str, list[float]] = {name: [] for name in WORKERS}
    for i in range(options.rounds):
        for name in sorted(WORKERS, reverse=bool(i % 2)):
            out = folder / f"{name}-{i}"
            seconds, _ = command([*jobs, *WORKERS[name]], out, options.threads, folder / "cache")
            assert len(list(out.glob("*/summary.json"))) == options.jobs, "every job must have a run of its own"
            found[name].append(seconds)
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    return {"jobs": options.jobs, "seconds": found, "ratio": medians["two_workers"] / medians["sequential"]}


def start(words: list[str], options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The seconds of one run outside training and evaluation, with an empty and a full cache, and their share of a
    run."""
    found: dict[str, list[float]] = {"empty_cache": [], "full_cache": []}
    cache = folder / "start-cache"
    for i in range(options.rounds):
        shutil.rmtree(cache, ignore_errors=True)
        for name, seconds in found.items():
            whole, training = command(words, folder / f"{name}-{i}", options.threads, cache)
            seconds.append(whole - training)
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    share = {name: seconds / options.whole for name, seconds in medians.items()}
    return {"seconds": found, "whole": options.whole, "share": share}


def imports(least: float) -> dict[str, float]:
    """{module: seconds, including its own imports} for the imports of experiments/run.py that take at least `least`."""
    code = "import adarank.harness.app, adarank.harness.run.execute, transformers.models.bert.modeling_bert"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = re.findall(r"import time:\s+\d+ \|\s+(\d+) \|( +)(\S+)", done.stderr)
    found = {name: int(total) / 1e6 for total, _, name in lines}
    return dict(sorted(((n, s) for n, s in found.items() if s >= least), key=lambda item: -item[1]))


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--jobs", type=int, default=12)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--threads", type=int, default=1, help="threads per job")
    arguments.add_argument("--whole", type=float, default=60.0, help="seconds of the run that start-up is a share of")
    arguments.add_argument(
        "words", nargs="*", default=["method=adalora", "train.steps=100"], help="settings of one job, as for run.py"
    )
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        found = {
            "settings": options.words,
            "start": start(options.words, options, folder),
            "sweep": sweep(options.words, options, folder),
            "imports": imports(least=0.2),
        }
    for name, share in found["start"]["share"].items():
        print(f"start, {name.replace('_', ' ')}: {share:.0%} of {options.whole:g} s")
    print(f"{options.jobs} jobs by two workers: {found['sweep']['ratio']:.2f} of the time one after the other")
    write(options, ["threads"], **found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
