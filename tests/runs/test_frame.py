"""Runs as DataFrames: packed ones and folders alike, typed, tidy, whatever state they are in."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
from pandas.testing import assert_frame_equal

import adarank
from adarank.errors import SettingError
from adarank.runs import frame as frames
from adarank.runs import packed, predictions, state
from experiments.pack import add_records, unpack, write_records

CONTROLS = Path(__file__).resolve().parents[2] / "experiments" / "results" / "controls" / "seeds"
ARMS = ("adalora", "full", "lora", "map")
RECORDS = {arm: dict(list(packed.read_file(CONTROLS / "rotten_tomatoes" / arm / packed.FILE))[:2]) for arm in ARMS}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two packed runs of each of four methods, in folders of their own."""
    folder = tmp_path_factory.mktemp("results")
    for arm, records in RECORDS.items():
        (folder / "seeds" / arm).mkdir(parents=True)
        write_records(folder / "seeds" / arm / packed.FILE, records)
    return folder


def records():
    return {f"seeds/{arm}/{name}": record for arm, runs in RECORDS.items() for name, record in runs.items()}


@pytest.mark.parametrize("kind", frames.KINDS)
def test_packed_runs_are_read_as_the_folders_that_they_are_unpacked_into(results, tmp_path, kind):
    unpack(results, tmp_path)
    ours, theirs = adarank.frame(results, kind), adarank.frame(str(tmp_path), kind)
    assert_frame_equal(ours, theirs)
    assert len(ours) >= 8 * (kind != "predictions")
    assert list(ours["run"]) == sorted(ours["run"])
    both = pandas.concat([ours, theirs]).groupby("run").size()
    shutil.copytree(results, tmp_path / "packed")
    assert len(adarank.frame(tmp_path, kind)) == both.sum()


def test_a_run_that_is_packed_in_place_is_listed_once(results, tmp_path):
    unpack(results, tmp_path)
    folders = adarank.frame(tmp_path)
    shutil.copytree(results, tmp_path, dirs_exist_ok=True)
    assert_frame_equal(adarank.frame(tmp_path), folders)


def test_a_run_is_one_row_with_typed_settings_results_and_costs(results):
    table = adarank.frame(results).set_index("run")
    types = {name: str(kind) for name, kind in table.dtypes.items()}
    assert (types["train.lr"], types["rank"], types["seed"]) == ("float64", "int64", "int64")
    assert (types["train.group_by_length"], types["tiny"], types["metric.higher_is_better"]) == ("bool",) * 3
    assert types["init_rank"] == "Int64"  # full fine-tuning and LoRA have none
    for run, record in records().items():
        row = table.loc[run]
        config, summary = record["config"], record["summary"]
        assert (row["method"], row["seed"], row["task"], row["model"], row["state"]) == (
            config["method"], config["seed"], "rotten_tomatoes", "minilm_l6", "finished",
        )  # fmt: skip
        assert (row["train.lr"], row["rank"]) == (config["train"]["lr"], config["rank"])
        for group in ("score", "allocator", "penalty"):
            expected = config[group] and config[group]["_target_"].rpartition(".")[2]
            assert row[group] == expected or (expected is None and pandas.isna(row[group]))
        assert row["metric.test_last"] == summary["metric"]["test_last"]
        assert row["test.loss"] == summary["test"]["loss"]
        assert row["parameters.kept"] == summary["parameters"]["kept"]
        assert (row["time.step_ms"], row["memory.peak_mib"]) == (
            summary["time"]["step_ms"], summary["memory"]["peak_mib"],
        )  # fmt: skip
        if summary["rank"]:
            ranks = list(summary["rank"]["final"].values())
            found = [row[f"rank.{name}"] for name in ("final_mean", "final_min", "final_max", "triplets")]
            assert found == [np.mean(ranks), min(ranks), max(ranks), sum(ranks)]
            assert row["rank.initial_mean"] == summary["rank"]["initial"]
            assert row["rank.budget_triplets"] == summary["rank"]["budget_triplets"]
        else:
            assert pandas.isna(row["rank.triplets"])
    assert list(table.reset_index().columns[: len(frames.RUN)]) == list(frames.RUN)


def test_metrics_allocations_and_ranks_are_those_of_the_files(results):
    tables = {kind: adarank.frame(results, kind) for kind in ("metrics", "allocations", "ranks")}
    for run, record in records().items():
        metrics, allocations, ranks = (table[table["run"] == run] for table in tables.values())
        assert list(zip(metrics["step"], metrics["split"], strict=True)) == [
            (line["step"], line["split"]) for line in record["metrics"]
        ]
        assert metrics["loss"].tolist() == [line["loss"] for line in record["metrics"]]
        assert metrics["accuracy"].dropna().tolist() == [
            line["accuracy"] for line in record["metrics"] if "accuracy" in line
        ]
        assert allocations["kept"].tolist() == [line["kept"] for line in record["allocations"]]
        if record["allocations"]:
            kept = ranks.groupby("step")["rank"].sum()
            assert dict(zip(allocations["step"], allocations["kept"], strict=True)) == kept.to_dict()
            assert allocations["mean_rank"].to_numpy() == pytest.approx(kept.to_numpy() / 36)
        elif record["summary"]["rank"]:
            assert set(ranks["step"]) == {0}
        last = ranks[ranks["step"] == ranks["step"].max()]
        final = (record["summary"]["rank"] or {}).get("final", {})
        assert dict(zip(last["module"], last["rank"], strict=True)) == final
        assert set(last["block"]) == (set(range(6)) if final else set())
    assert set(tables["ranks"]["kind"]) >= {"attention.self.query", "output.dense"}
    assert str(tables["ranks"]["rank"].dtype) == str(tables["ranks"]["block"].dtype) == "int64"


@pytest.fixture
def live(tmp_path):
    """A finished run, one whose files are half written, one that failed, one that diverged, and one that was killed at
    once, at several depths."""
    finished, running, failed, diverged, empty = (
        tmp_path / name / f"lora-0123456789-s{seed}" for seed, name in enumerate(["a", "a/b", "a", "c", "d"])
    )
    for folder in (finished, running, failed, diverged, empty):
        folder.mkdir(parents=True)
    for folder in (finished, running, failed, diverged):
        config = "method: lora\narm: lora@2\nseed: 7\nrank: 2\ntarget_modules: [query, value]\ntrain: {lr: 1.0e-05, microbatches: %s}\n"
        (folder / "config.yaml").write_text(config % (2 if folder == finished else "auto"))
    lines = '{"step": 1, "split": "train", "loss": 0.5}\n'
    (finished / "metrics.jsonl").write_text(lines + '{"step": 2, "split": "dev", "loss": null}\n')
    (running / "metrics.jsonl").write_text(lines + '{"step": 2, "split": "tr')
    header = '{"modules": ["a.0.q", "head"]}\n'
    (running / "allocations.jsonl").write_text(
        header + '{"step": 4, "kept": 3, "ranks": [1, 2]}\n{"step": 5, "ranks": ['
    )
    (finished / "allocations.jsonl").write_text(header[:9])
    summary = {"status": "finished", "method": "lora", "arm": "lora@2", "task": "t", "seed": 0, "metric": {"test": 0.5}}
    (finished / "summary.json").write_text(json.dumps(summary))
    (empty / "status.json").write_text("{")
    state.write_status(finished, "finished", 2)
    state.write_status(running, "running", 2)
    state.write_status(failed, "failed", 1, "no memory")
    state.write_status(diverged, "diverged", 1, "the loss became nan")
    (running / "wandb").mkdir()
    (running / "wandb" / "config.yaml").write_text("x: 1\n")
    return tmp_path


def test_runs_in_every_state_are_there_and_half_written_lines_are_not(live):
    table = adarank.frame(live)
    assert dict(zip(table["run"], table["state"], strict=True)) == {
        "a/b/lora-0123456789-s1": "stale",
        "a/lora-0123456789-s0": "finished",
        "a/lora-0123456789-s2": "failed",
        "c/lora-0123456789-s3": "diverged",
        "d/lora-0123456789-s4": "incomplete",
    }
    row = table.set_index("state")
    assert row.loc["failed", "error"] == "no memory"
    assert row["seed"].to_dict() == {"stale": 7, "finished": 0, "failed": 7, "diverged": 7, "incomplete": 4}
    assert row.loc["stale", "arm"] == row.loc["finished", "arm"] == "lora@2"
    assert row.loc["stale", "train.lr"] == 1e-5
    assert row.loc["stale", "target_modules"] == "query, value"
    assert row["train.microbatches"].dropna().to_dict() == {
        "stale": "auto", "finished": "2", "failed": "auto", "diverged": "auto",
    }  # fmt: skip
    assert str(table["rank"].dtype) == "Int64"  # one run has none
    metrics = adarank.frame(live, "metrics")
    assert metrics[["run", "step"]].to_numpy().tolist() == [
        ["a/b/lora-0123456789-s1", 1], ["a/lora-0123456789-s0", 1], ["a/lora-0123456789-s0", 2],
    ]  # fmt: skip
    assert metrics["loss"].isna().tolist() == [False, False, True]
    assert adarank.frame(live, "allocations")["kept"].tolist() == [3]
    ranks = adarank.frame(live, "ranks")
    assert ranks["rank"].tolist() == [1, 2]
    assert ranks["block"].tolist() == [0, pandas.NA]
    assert adarank.frame(live / "a" / "lora-0123456789-s0")["run"].tolist() == ["lora-0123456789-s0"]


def test_predictions_have_a_row_per_row_and_checkpoint(live):
    classes = {"label": np.array([0, 1]), "prediction": np.array([1, 1]), "score": np.float32([0.75, 0.5])}
    other = {"label_best": classes["label"], "prediction_best": np.array([0, 1]), "score_best": np.float32([0.5, 0.25])}
    predictions.write(live / "a" / "lora-0123456789-s0", classes | other)
    table = adarank.frame(live, "predictions")
    assert table["checkpoint"].tolist() == ["last", "last", "best", "best"]
    assert table["row"].tolist() == [1, 2, 1, 2]
    assert (table["label"].tolist(), table["prediction"].tolist()) == ([0, 1, 0, 1], [1, 1, 0, 1])
    assert table["score"].tolist() == [0.75, 0.5, 0.5, 0.25]
    assert str(table["label"].dtype) == "int64"
    predictions.write(live / "a" / "lora-0123456789-s2", {"score": np.float32([1.5])})
    record = next(iter(records().values()))
    add_records(live / packed.FILE, {"packed-0123456789-s0": {**record, "predictions": predictions.packed(classes)}})
    table = adarank.frame(live, "predictions")
    assert table["run"].tolist()[-3:] == ["a/lora-0123456789-s2", *["packed-0123456789-s0"] * 2]
    assert table["label"].isna().tolist() == [False] * 4 + [True] + [False] * 2
    assert table["score"].isna().tolist() == [False] * 5 + [True] * 2
    (live / "a" / "lora-0123456789-s0" / "predictions.npz").write_bytes(b"PK")
    with pytest.raises(SettingError, match=r"predictions\.npz is damaged"):
        adarank.frame(live, "predictions")


def test_no_runs_are_a_table_without_rows(tmp_path):
    assert list(adarank.frame(tmp_path).columns) == [*frames.RUN, *frames.RESULTS]
    for kind, columns in frames.COLUMNS.items():
        table = adarank.frame(tmp_path, kind)
        assert (len(table), list(table.columns)) == (0, list(columns))


def test_a_wrong_folder_or_kind_and_a_missing_pandas_are_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(SettingError, match=r"^OUT must be a folder that holds runs \(got .*absent\)$"):
        adarank.frame(tmp_path / "absent")
    with pytest.raises(SettingError, match=r"^kind must be one of runs, metrics, .* \(got rank\)$"):
        adarank.frame(tmp_path, "rank")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(SettingError, match=r"^adarank\.frame needs the package pandas, which is not installed"):
        adarank.frame(tmp_path)
