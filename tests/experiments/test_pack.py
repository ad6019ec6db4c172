"""Finished runs as files that can be committed, and back."""

import json
import lzma
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import yaml

from adarank.errors import SettingError
from adarank.runs import allocations, predictions
from adarank.runs.lock import locked
from adarank.runs.packed import FILE, read_record, read_records
from analysis.load import read_runs
from experiments.collect import collect
from experiments.pack import add_records, pack, unpack
from tests.experiments.test_run import inside

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "experiments" / "results"


def command(script, *words, cwd=ROOT):
    command = [sys.executable, str(ROOT / script), *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    inside("method=adalora", "tiny=true", f"out={out / 'sweep'}")
    return out


@pytest.mark.slow
def test_a_run_that_went_through_a_file_is_the_same_but_for_weights_and_quantiles(out, tmp_path):
    (place,) = pack(out, tmp_path / "results")
    (run,) = out.glob("sweep/adalora-*")
    assert place == tmp_path / "results" / "sweep" / run.name
    assert [path.name for path in place.parent.iterdir()] == [FILE]
    (back,) = unpack(tmp_path / "results", tmp_path / "back")
    assert back == tmp_path / "back" / "sweep" / run.name
    assert json.loads((back / "summary.json").read_text()) == json.loads((run / "summary.json").read_text())
    config, whole = (yaml.safe_load((f / "config.yaml").read_text()) for f in (back, run))
    assert config == {**whole, "out": "sweep"}
    assert str(out) not in json.dumps(read_record(place)), "folders of this machine stay here"
    assert (back / "metrics.jsonl").read_text() == (run / "metrics.jsonl").read_text()
    records, unpacked = (allocations.read(f / "allocations.jsonl")[0] for f in (run, back))
    assert records[-1].pop("score_quantiles")
    assert unpacked == [{k: v for k, v in record.items() if k != "score_quantiles"} for record in records]
    assert (back / "allocations.jsonl").read_text().startswith('{"modules": [')
    whole, without_scores = predictions.read(run), predictions.read(back)
    assert without_scores.keys() == {name for name in whole if not name.startswith("score")}
    assert all(np.array_equal(values, whole[name]) for name, values in without_scores.items())
    assert sorted(p.name for p in back.iterdir()) == [
        "allocations.jsonl",
        "config.yaml",
        "metrics.jsonl",
        "predictions.npz",
        "status.json",
        "summary.json",
    ]


@pytest.mark.slow
def test_what_came_back_is_analysed_and_skipped_like_any_run(out, tmp_path):
    pack(out, tmp_path / "results")
    (back,) = unpack(tmp_path / "results", tmp_path / "back")
    (run,) = read_runs(tmp_path / "back")
    assert (run.state, run.score) == ("finished", read_runs(out)[0].score)
    before = {p.name: p.stat().st_mtime_ns for p in back.iterdir()}
    done = inside("method=adalora", "tiny=true", f"out={tmp_path / 'back' / 'sweep'}")
    assert "finished already" in done.stdout
    assert {p.name: p.stat().st_mtime_ns for p in back.iterdir()} == before


def test_nothing_is_written_twice_and_unfinished_runs_are_left_out(out, tmp_path):
    folder = tmp_path / "runs" / "lora-0123456789-s0"
    folder.mkdir(parents=True)
    (folder / "status.json").write_text('{"state": "running"}')
    assert pack(tmp_path / "runs", tmp_path / "results") == []
    assert len(pack(out, tmp_path / "results")) == 1
    assert pack(out, tmp_path / "results") == []
    (back,) = unpack(tmp_path / "results", tmp_path / "back")
    assert unpack(tmp_path / "results", tmp_path / "back") == []
    (back / "status.json").unlink()  # as if the call had been killed
    (back / "summary.json").unlink()
    assert unpack(tmp_path / "results", tmp_path / "back") == [back]
    assert pack(tmp_path / "back", tmp_path / "results") == []


def test_a_run_that_was_finished_elsewhere_replaces_the_unfinished_one(out, tmp_path):
    """It was trained again, or its failure ended every call, although its result was packed."""
    pack(out, tmp_path / "results")
    (back,) = unpack(tmp_path / "results", tmp_path / "back")
    finished = (back / "status.json").read_bytes()
    for state in ("running", "failed"):
        (back / "status.json").write_text(json.dumps({"state": state}))
        (back / "checkpoint").mkdir()
        (back / "checkpoint" / "weights").write_text("of the unfinished run")
        with locked(back):
            assert unpack(tmp_path / "results", tmp_path / "back") == [], "a process is training it"
        assert unpack(tmp_path / "results", tmp_path / "back") == [back]
        assert (back / "status.json").read_bytes() == finished
        assert not (back / "checkpoint").exists()


def test_folders_may_come_and_go_while_runs_are_packed(out, tmp_path):
    """Two jobs of a study share a folder, in which each deletes its temporary folders: packing ended in a traceback."""
    runs, stop = tmp_path / "runs", threading.Event()
    shutil.copytree(out, runs)

    def churn():
        while not stop.is_set():
            (runs / "sweep" / ".sweep" / "abc").mkdir(parents=True, exist_ok=True)
            shutil.rmtree(runs / "sweep" / ".sweep")

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(200):
            pack(runs, tmp_path / "results")
    finally:
        stop.set()
        thread.join()


def test_what_cannot_be_packed_is_one_sentence(out, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(out, runs)
    (run,) = runs.glob("sweep/adalora-*")
    with pytest.raises(SettingError, match=r"OUT must be a folder that holds runs \(got .*, which is a run\)"):
        pack(run, tmp_path / "results")
    (run / "config.yaml").unlink()
    with pytest.raises(
        SettingError, match=r"is a finished run without config.yaml; restore the file, or delete the folder"
    ):
        pack(runs, tmp_path / "results")


def test_what_was_measured_of_a_run_later_is_added_to_its_file(out, tmp_path):
    runs, results = tmp_path / "runs", tmp_path / "results"
    shutil.copytree(out, runs)
    (place,) = pack(runs, results)
    (run,) = runs.glob("sweep/adalora-*")
    before, file = read_record(place), place.parent / FILE
    for name in ("forgetting.json", "similarity.json"):
        (run / name).write_text('{"stsb": {"rows": 123456789, "before": 0.8, "after": [0.7012345678]}}')
    assert pack(runs, results) == [place]
    measures = {"forgetting.json": {"stsb": {"rows": 123456789, "before": 0.8, "after": [0.7012346]}}}
    assert read_record(place) == {**before, "measures": measures}, "similarities are too large for it"
    assert pack(runs, results) == []
    (back,) = unpack(results, tmp_path / "back")
    assert json.loads((back / "forgetting.json").read_text()) == measures["forgetting.json"]
    (run / "forgetting.json").unlink()
    assert pack(runs, results) == [], "what is in a file stays there"
    (run / "delta.json").write_text('{"top": 10}')
    assert pack(runs, results) == [place]
    assert read_record(place)["measures"] == {**measures, "delta.json": {"top": 10}}
    (run / "delta.json").write_text("{")
    kept = file.read_bytes()
    done = command("experiments/pack.py", "pack", runs, results)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {run / 'delta.json'} is damaged; ")
    assert len(done.stderr.splitlines()) == 1
    assert file.read_bytes() == kept


def test_a_folder_that_is_missing_is_refused(tmp_path):
    for command_name, source in (("pack", "OUT"), ("unpack", "RESULTS")):
        done = command("experiments/pack.py", command_name, tmp_path / "absent", tmp_path / "target")
        assert done.returncode == 2
        assert done.stderr == f"error: {source} must be a folder that holds runs (got {tmp_path / 'absent'})\n"


def test_the_form_of_allocations_without_a_header_is_packed_alike(out, tmp_path):
    shutil.copytree(out, tmp_path / "runs")
    (run,) = (tmp_path / "runs").glob("sweep/adalora-*")
    records, _ = allocations.read(run / "allocations.jsonl")
    (run / "allocations.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (old,), (new,) = pack(tmp_path / "runs", tmp_path / "old"), pack(out, tmp_path / "new")
    assert (old.parent / FILE).read_bytes() == (new.parent / FILE).read_bytes(), "the bytes depend on the run alone"


def test_the_runs_of_a_folder_share_a_file_in_whatever_order_they_were_packed(tmp_path):
    names = [f"lora-0123456789-s{seed}" for seed in range(6)]
    for name in names:
        make_run(tmp_path / "runs" / "sweep" / name, value=0.25)
    new = pack(tmp_path / "runs", tmp_path / "at once")
    assert [place.name for place in new] == names
    at_once = tmp_path / "at once" / "sweep" / FILE
    make_run(tmp_path / "runs" / "other" / names[0])
    assert len(pack(tmp_path / "runs", tmp_path / "at once")) == 1
    records = {place.name: record for place, record in read_records(at_once.parent)}
    assert list(records) == names
    file = tmp_path / "side by side" / FILE
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda name: add_records(file, {name: records[name]}), reversed(names)))
    assert file.read_bytes() == at_once.read_bytes(), "no job loses the run of another"
    assert [path.name for path in file.parent.iterdir()] == [FILE]
    add_records(file, {names[2]: {"summary": {}}})
    assert read_record(file.parent / names[2]) == {"summary": {}}
    assert read_record(file.parent / names[3]) == records[names[3]]
    with pytest.raises(SettingError, match=r"other must be a packed run \(got .*runs\.jsonl\.xz without it\)"):
        read_record(file.parent / "other")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        lzma.compress(b"[]"),
        lzma.compress(b"{}"),
        lzma.compress(b'{"run": "lora-0123456789-s0", "config": {}}')[:-8],
        lzma.compress(b'{"run": "lora-0123456789-s0", "conf'),
    ],
)
def test_a_damaged_file_is_named_and_not_written_over(tmp_path, content):
    file = tmp_path / "results" / FILE
    file.parent.mkdir()
    file.write_bytes(content)
    make_run(tmp_path / "runs" / "lora-0123456789-s0")
    for call in (lambda: unpack(file.parent, tmp_path / "out"), lambda: pack(tmp_path / "runs", file.parent)):
        with pytest.raises(SettingError, match=r"runs\.jsonl\.xz is damaged"):
            call()
    assert file.read_bytes() == content


def test_predicted_classes_are_kept_and_other_predictions_are_not(tmp_path):
    draw = np.random.default_rng(0)
    label, score = draw.integers(0, 2, 1000), draw.random(1000).astype(np.float32)
    last, best = (np.where(draw.random(1000) < share, 1 - label, label) for share in (0.12, 0.2))
    classes = {"label": label, "prediction": last, "score": score}
    columns = {
        "plain": None,
        "classes": classes,
        "two": classes | {"label_best": label, "prediction_best": best, "score_best": score},
        "targets": {"label": score, "prediction": score, "score": score},
        "texts": {"score": score},
    }
    sizes = {}
    for seed, (name, given) in enumerate(columns.items()):
        folder = tmp_path / "runs" / f"lora-0123456789-s{seed}"
        make_run(folder)
        if given is not None:
            predictions.write(folder, given)
        (place,) = pack(tmp_path / "runs", tmp_path / name)
        sizes[name] = (place.parent / FILE).stat().st_size
        shutil.rmtree(tmp_path / "runs")
        (back,) = unpack(tmp_path / name, tmp_path / "back")
        expected = {k: v for k, v in (given or {}).items() if k.startswith(("label", "prediction"))}
        found = predictions.read(back)
        assert found.keys() == (expected.keys() if name in ("classes", "two") else set())
        assert all(np.array_equal(values, expected[k]) for k, values in found.items())
    assert sizes["targets"] == sizes["texts"] == pytest.approx(sizes["plain"], abs=8)
    assert sizes["classes"] - sizes["plain"] < 400, "bytes for 1,000 rows"


def make_run(folder, status="finished", value=0.5, **files):
    folder.mkdir(parents=True)
    summary = {"status": status, "steps": 4, "metric": {"test": value}}
    for name, content in {"summary": summary, "status": {"state": status}, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "config.yaml").write_text("method: lora\n")


def test_runs_of_the_protocol_are_collected_wherever_they_lie(tmp_path):
    """experiments/protocol.py nests them: STAGE/TASK/METHOD/RUN. The same name occurs in several of its folders."""
    name = "lora-0123456789-s0"
    make_run(tmp_path / "runs" / "seeds" / "cola" / "lora" / name, value=0.25, probe={"rows": 8})
    make_run(tmp_path / "runs" / "tuning" / "cola" / "lora" / name)
    make_run(tmp_path / "runs" / "tuning" / "cola" / "lora" / "lora-0123456789-s1", status="failed")
    make_run(tmp_path / "runs" / "lora-0123456789-s2")
    collected = collect(tmp_path / "runs")
    assert {run: summary["metric"]["test"] for run, summary in collected.items()} == {
        f"seeds/cola/lora/{name}": 0.25,
        f"tuning/cola/lora/{name}": 0.5,
        "lora-0123456789-s2": 0.5,
    }
    assert collect(tmp_path / "runs", "probe.json") == {f"seeds/cola/lora/{name}": {"rows": 8}}
    pack(tmp_path / "runs", tmp_path / "results")
    for file in ("summary.json", "probe.json"):
        assert collect(tmp_path / "results", file) == collect(tmp_path / "runs", file)


def test_the_command_collects_into_one_file_or_says_what_is_missing(tmp_path):
    make_run(tmp_path / "runs" / "seeds" / "cola" / "lora" / "lora-0123456789-s0")
    done = command("experiments/collect.py", tmp_path / "runs", tmp_path / "file.json")
    assert (done.returncode, done.stdout) == (0, f"1 runs -> {tmp_path / 'file.json'}\n")
    assert list(json.loads((tmp_path / "file.json").read_text())) == ["seeds/cola/lora/lora-0123456789-s0"]
    done = command("experiments/collect.py", tmp_path / "runs", tmp_path / "file.json", "--name", "delta.json")
    assert done.returncode == 2
    assert (
        done.stderr
        == f"error: OUT must be a folder that holds finished runs with delta.json (got {tmp_path / 'runs'})\n"
    )


def test_committed_results_are_small():
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    sizes = {name: (ROOT / name).stat().st_size for name in tracked.split("\0") if name and (ROOT / name).is_file()}
    assert max(sizes.values()) < 1_000_000
    blocks = [-(-size // 4096) * 4096 for name, size in sizes.items() if name.startswith("experiments/results/")]
    assert sum(blocks) < 8_000_000
    alone = [*RESULTS.rglob("*-s*.json"), *RESULTS.rglob("*-s*.json.gz")]
    assert not alone, "packed runs are joined: python experiments/migrate_results.py --join"
    assert len(list(read_records(RESULTS))) > 700


def test_committed_runs_can_be_unpacked(tmp_path):
    new = unpack(RESULTS / "controls" / "seeds" / "rotten_tomatoes" / "adalora", tmp_path)
    assert len(new) == 10
    assert {run.state for run in read_runs(tmp_path)} == {"finished"}
