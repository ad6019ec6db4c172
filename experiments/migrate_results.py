"""Bring the committed results into the present form: names of settings and runs, and files. A second call changes nothing.

    python experiments/migrate_results.py --data GLUE [experiments/results]

Every packed run (experiments/pack.py), compressed or in the former plain JSON, gets the present names of its settings. It
is written as `<method>-<digest>-s<seed>.json.gz`, the name that experiments/run.py gives the run now. The digest covers
the data, so --data names the folder with GLUE's tasks. Files that gather runs of experiment=quickstart use these names
as well.
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from adarank.harness.config.compose import spec_from
from adarank.harness.config.spec import Spec, spec_of
from adarank.harness.data.tasks.base import Task
from adarank.harness.models import Base
from adarank.harness.run import identity
from adarank.harness.run.ranks_from import RankMap
from adarank.harness.run.resolve import chosen_targets, frozen_dtype, load_base, load_task
from adarank.runs.files import read_json, write_json
from adarank.runs.packed import SUFFIX, read_record, record_files, run_name
from experiments.pack import write_record

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
GATHERED = (
    "quickstart.json",
    "methods.json",
    "probe.json",
    "delta.json",
    "forgetting.json",
)  # of experiment=quickstart


def renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in values.items()}


def present_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config.yaml by the settings' present names; one that has them already is returned unchanged."""
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
    """The task's rows. data: the folder of a task that was read from a folder, whose path results do not keep."""
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


def migrate(results: Path, data: Path | None) -> list[Path]:
    """Migrate every packed run below `results`, runs of a rank map after their sources. Returns the files written."""
    files = [*record_files(results), *sorted(results.rglob("*-s*.json"))]
    records = {file: read_record(file) if file.name.endswith(SUFFIX) else read_json(file) for file in files}
    configs = {file: present_config(record["config"]) for file, record in records.items()}
    sources = {
        run_name(file).removesuffix(".json"): file for file, config in configs.items() if not config["ranks_from"]
    }
    names: dict[Path, str] = {}
    written = []
    for file in sorted(files, key=lambda file: configs[file]["ranks_from"] is not None):
        config, rank_map = configs[file], None
        if config["ranks_from"] is not None and (source := sources.get(Path(config["ranks_from"]).name)) is not None:
            rank = records[source]["summary"]["rank"]
            rank_map = RankMap(rank["budget"], rank["initial"], rank["final"])
            config["ranks_from"] = names[source]
        names[file] = name_of(spec_of(config), data, rank_map)
        target, record = file.with_name(names[file] + SUFFIX), {**records[file], "config": config}
        if target != file or record != records[file]:
            write_record(target, record)
            written.append(target)
            if target != file:
                file.unlink()
    return written


def quickstart_name(old: str, *words: str) -> str:
    """The present name of a run of experiment=quickstart, known by its method and seed."""
    method, seed = old.rpartition("-s")[0].rpartition("-")[0], old.rpartition("-s")[2]
    overrides = ["experiment=quickstart", f"method={method}", f"seed={seed}", *words]
    spec = spec_from(overrides)
    return name_of(replace(spec, train=replace(spec.train, precision="fp32")), None)


def migrate_gathered(results: Path) -> list[Path]:
    """Rename the runs in the files that gather runs of experiment=quickstart, and settings in planted.json's overrides."""
    contents: dict[Path, Any] = {results / name: read_json(results / name) for name in GATHERED}
    changed = {path: {quickstart_name(run): value for run, value in runs.items()} for path, runs in contents.items()}
    trials, planted = results / "quickstart_lr.json", results / "planted.json"
    contents |= {path: read_json(path) for path in (trials, planted)}
    changed |= {path: read_json(path) for path in (trials, planted)}
    for trial in (trial for method in changed[trials]["trials"].values() for trial in method):
        trial["run"] = quickstart_name(trial["run"], f"train.lr={trial['lr']}", f"rank={trial['rank']}")
    for row in changed[planted]["rows"]:
        row["overrides"] = [word.replace("capacity=", "max_rank_factor=") for word in row["overrides"]]
    written = [path for path, value in changed.items() if value != contents[path]]
    for path in written:
        write_json(path, changed[path], indent=None if path.stat().st_size > 64_000 else 2)
    return written


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS)
    parser.add_argument("--data", type=Path, help="the folder with GLUE's tasks")
    options = parser.parse_args()
    written = migrate(options.results, options.data) + migrate_gathered(options.results)
    print(f"{len(written)} files written below {options.results}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
