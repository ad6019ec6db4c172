"""Committed results are brought into the present form: settings and runs by their present names, compressed."""

import gzip
import json

import pytest

from adarank.harness.config.spec import spec_of
from adarank.runs.packed import FILE, read_file
from experiments.migrate_results import migrate, name_of, present_config
from tests.harness.config.test_validate import settled

OLD = {
    "method": "adalora", "rank": 2, "init_rank": 3, "targets": "all", "target_modules": None, "seed": 8, "holdout": 500,
    "out": "map", "tiny": False, "checkpoint_seconds": 60.0, "compaction": "off", "patience": 5, "mode": "exact",
    "pruned": "learning", "basis": "learned", "capacity": 1.0, "budget": {"unit": "triplets"},
    "train": {
        "lr": 0.01, "optimizer": "adamw", "lr_ratio": 1.0, "steps": 200, "batch_size": 24, "group_by_length": True,
        "accumulation": 1, "warmup": 0.06, "decay": "linear", "weight_decay": 0.0, "clip": 1.0, "eval_every": 0.25,
        "log_every": 10, "precision": "fp32", "checkpoint_activations": False, "shard": "none",
    },
    "adapter": {"_target_": "adarank.adapt", "adapter": "svd", "alpha": None, "dropout": 0.0, "rslora": False},
    "init": {"_target_": "adarank.inits.default"},
    "score": {"_target_": "adarank.scores.adalora", "beta1": 0.85, "beta2": 0.85},
    "allocator": {"_target_": "adarank.allocators.global_top", "min_rank": 0, "max_rank": None},
    "schedule": {"_target_": "adarank.schedules.cubic", "t_i": 20, "t_f": 60, "interval": 2},
    "penalty": {"_target_": "adarank.penalties.orthogonality", "gamma": 0.1},
    "quantization": None,
    "task": {"_target_": "adarank.harness.tasks.movie_reviews.rotten_tomatoes", "limit": 600, "max_length": 48},
    "model": {"_target_": "adarank.harness.models.tiny", "arch": "bert", "width": 32, "layers": 1, "head_dropout": None},
    "tracker": {"_target_": "adarank.harness.tracking.no_copy"},
}  # fmt: skip
MAP = {"_target_": "adarank.harness.rank_map.rank_map", "source": "adalora-0000000000-s8", "shuffle": "all", "seed": 4}
MAPPED = {**OLD, "score": None, "schedule": None, "allocator": MAP}
RANKS = {"budget": 2, "initial": 3, "final": {"a": 3, "b": 1}}


def record(config):
    summary = {"rank": RANKS, "metric": {"name": "accuracy", "test": 0.5}}
    measures = {"delta.json": {"norm": 0.123456789}}
    return {
        "config": config,
        "summary": summary,
        "metrics": [],
        "modules": [],
        "allocations": [],
        "measures": measures,
    }


def copied(config):
    return json.loads(json.dumps(config))


def test_settings_have_their_present_names():
    config = present_config(copied(OLD))
    assert spec_of(config).record() == config == present_config(config)
    assert (config["variant"], config["pruned_triplets"], config["svd_before_allocation"]) == (
        "exact",
        "trainable",
        False,
    )
    assert (config["max_rank_factor"], config["compact_after"]) == (1.0, 5)
    train = config["train"]
    assert (train["max_grad_norm"], train["lr_scheduler"], train["gradient_accumulation_steps"]) == (1.0, "linear", 1)
    assert config["ranks_from"] is None


@pytest.mark.parametrize(("shuffle", "seed"), [("all", 4), ("none", 0)])
def test_a_rank_map_is_no_allocator(shuffle, seed):
    config = present_config(copied({**MAPPED, "allocator": {**MAP, "shuffle": shuffle}}))
    assert config["allocator"] is None
    assert [config[key] for key in ("ranks_from", "ranks_shuffle", "ranks_shuffle_seed")] == [
        MAP["source"],
        shuffle,
        seed,
    ]


def test_runs_are_named_as_the_command_names_them_and_a_second_call_changes_nothing(tmp_path):
    (tmp_path / "adalora-0000000000-s8.json").write_text(json.dumps(record(OLD), indent=2))
    (tmp_path / "adalora-1111111111-s8.json.gz").write_bytes(gzip.compress(json.dumps(record(MAPPED)).encode()))
    assert migrate(tmp_path, None) == 2
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    records = dict(read_file(tmp_path / FILE))
    ((plain, source),) = [item for item in records.items() if item[1]["config"]["ranks_from"] is None]
    ((_, other),) = [item for item in records.items() if item[0] != plain]
    assert other["config"]["ranks_from"] == plain
    assert 0.5 <= source["summary"]["metric"].pop("majority") < 0.52  # accuracy of one class out of two
    assert source.pop("measures") == {"delta.json": {"norm": 0.1234568}}
    assert {**source, "measures": record({})["measures"]} == record(source["config"])
    words = ["rank=2", "seed=8", "holdout=500", "train.steps=200", "train.batch_size=24", "train.eval_every=0.25"]
    words += [
        "train.microbatches=1",
        "train.group_by_length=true",
        "train.precision=fp32",
        "task.max_length=48",
        "task.limit=600",
    ]
    words += ["model=tiny_bert", "model.width=32", "model.layers=1"]
    assert plain == name_of(settled(*words), None)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert migrate(tmp_path, None) == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
