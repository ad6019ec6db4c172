"""Migrates the committed results to the current format: names of settings and runs, files, and fields of summaries. A
second call changes nothing.

    python experiments/migrate_results.py --data GLUE [experiments/results]

Runs in separate files, as experiments/pack.py used to write them (`<run>.json.gz`, and before that plain
JSON), are joined in one file for each folder; --join does only this. Then every packed run gets the current names of
its settings and the name that experiments/run.py now gives the run, `<method>-<digest>-s<seed>`. The digest covers the
data, so --data names the folder with GLUE's tasks. Summaries of classification runs gain `metric.majority`, the
metric's value for always predicting the most frequent class. Measurements are rounded as experiments/pack.py rounds
them.
"""

import argparse
import gzip
import json
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from adarank.harness.config.spec import Spec, spec_of
from adarank.harness.data.metrics.labels import majority
from adarank.harness.data.tasks.base import Task
from adarank.harness.models import Base
from adarank.harness.run import identity
from adarank.harness.run.ranks_from import RankMap
from adarank.harness.run.resolve import chosen_targets, frozen_dtype, load_base, load_task
from adarank.runs.packed import FILE, read_file, record_files
from experiments.pack import add_records, rounded, write_records

RESULTS = Path(__file__).resolve().parent / "results"
Record = dict[str, Any]  # {config, summary, metrics, modules, allocations, measures}: `measures` may be missing
SETTINGS = {"mode": "variant", "capacity": "max_rank_factor", "patience": "compact_after"}
TRAIN = {
    "accumulation": "gradient_accumulation_steps",
    "clip": "max_grad_norm",
    "decay": "lr_scheduler",
    "checkpoint_activations": "gradient_checkpointing",
    "lr_ratio": "loraplus_lr_ratio",
}
PIECES = {"worth": "importance_of", "exchange": "swaps", "lowest": "candidates_per_module", "xi": "sparsity"}


def renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in values.items()}


def present_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config.yaml with the settings' current names; one that already has them is returned unchanged."""
    if "variant" in config:
        return dict(config)
    present = renamed(config, SETTINGS)
    present["train"] = renamed(present["train"], TRAIN)
    present["pruned_triplets"] = present.pop("pruned").replace("learning", "trainable")
    present["svd_before_allocation"] = present.pop("basis") == "singular"
    for group in ("allocator", "penalty"):
        present[group] = present[group] and renamed(present[group], PIECES)
    target = present["task"]["_target_"]
    present["task"]["_target_"] = target.replace("adarank.harness.tasks.", "adarank.harness.data.tasks.")
    if present["allocator"] and present["allocator"]["_target_"].endswith(".rank_map"):
        source, shuffle, seed = (present["allocator"][key] for key in ("source", "shuffle", "seed"))
        present |= {"allocator": None, "ranks_from": source, "ranks_shuffle": shuffle}
        present["ranks_shuffle_seed"] = 0 if shuffle == "none" else seed
    return spec_of(present).record()


@cache
def task_of(target: str, settings: tuple[tuple[str, Any], ...], holdout: float | None, data: Path | None) -> Task:
    """The task's rows. data: the folder of a task that was read from a folder, since results do not keep its path."""
    given = {key: str(data) if key == "path" and value is not None else value for key, value in settings}
    task = {"_target_": target, **given}
    return load_task(spec_of({"method": "", "train": {"lr": 1.0}, "task": task, "holdout": holdout}))


@cache
def base_of(target: str, settings: tuple[tuple[str, Any], ...]) -> Base:
    return load_base(spec_of({"method": "", "train": {"lr": 1.0}, "model": {"_target_": target, **dict(settings)}}))


def name_of(spec: Spec, data: Path | None, rank_map: RankMap | None = None) -> str:
    """The name of the run's folder."""
    assert spec.task is not None
    assert spec.model is not None
    task = task_of(spec.task.target, tuple(spec.task.settings.items()), spec.holdout, data)
    base = base_of(spec.model.target, tuple(spec.model.settings.items()))
    targets = chosen_targets(spec, task, base)
    dtype = frozen_dtype(spec, base, torch.device("cpu"))
    deciding = identity.decides(spec, task, base, dtype, targets, rank_map)
    return identity.run_folder("", spec.method, deciding, spec.seed).name


def with_majority(summary: Mapping[str, Any], spec: Spec, data: Path | None) -> dict[str, Any]:
    """The summary with metric.majority, for the split on which the run was judged; unchanged if its task has no
    classes."""
    assert spec.task is not None
    metric, task = summary["metric"], task_of(spec.task.target, tuple(spec.task.settings.items()), spec.holdout, data)
    judged = task.dev if metric.get("test") is None else task.test
    if not task.labels or judged is None:
        return dict(summary)
    value = majority(metric["name"], np.asarray(judged.label), len(task.labels))
    return {**summary, "metric": {**metric, "majority": value}}


def join(results: Path) -> int:
    """Join the runs that lie in separate files below `results`. Returns how many there were."""
    alone = [*results.rglob("*-s*.json.gz"), *results.rglob("*-s*.json")]
    for folder in sorted({file.parent for file in alone}):
        files = {file.name.partition(".json")[0]: file for file in alone if file.parent == folder}
        contents = {name: file.read_bytes() for name, file in files.items()}
        texts = {name: gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data for name, data in contents.items()}
        add_records(folder / FILE, {name: json.loads(text) for name, text in texts.items()})
        for file in files.values():
            file.unlink()
    return len(alone)


def migrate(results: Path, data: Path | None) -> int:
    """Migrate every packed run below `results`, runs of a rank map after their sources. Returns how many changed."""
    join(results)
    records = {(file, name): record for file in record_files(results) for name, record in read_file(file)}
    configs = {run: present_config(record["config"]) for run, record in records.items()}
    sources = {run[1]: run for run, config in configs.items() if not config["ranks_from"]}
    names: dict[tuple[Path, str], str] = {}
    migrated: dict[Path, dict[str, Record]] = {}
    for run in sorted(records, key=lambda run: configs[run]["ranks_from"] is not None):
        config, rank_map = configs[run], None
        if config["ranks_from"] is not None and (source := sources.get(Path(config["ranks_from"]).name)) is not None:
            rank = records[source]["summary"]["rank"]
            rank_map = RankMap(rank["budget"], rank["initial"], rank["final"])
            config["ranks_from"] = names[source]
        names[run] = name_of(spec_of(config), data, rank_map)
        summary = with_majority(records[run]["summary"], spec_of(config), data)
        measures = {key: rounded(value) for key, value in records[run].items() if key == "measures"}
        migrated.setdefault(run[0], {})[names[run]] = {**records[run], "config": config, "summary": summary, **measures}
    changed = 0
    for file, runs in migrated.items():
        known = dict(read_file(file))
        if runs != known:
            write_records(file, runs)
        changed += sum(known.get(name) != record for name, record in runs.items())
    return changed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS)
    parser.add_argument("--data", type=Path, help="the folder with GLUE's tasks")
    parser.add_argument("--join", action="store_true", help="only join runs that are stored in separate files")
    options = parser.parse_args()
    runs = join(options.results) if options.join else migrate(options.results, options.data)
    print(f"{runs} runs below {options.results} changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
