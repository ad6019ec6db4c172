import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from adarank.errors import RunFailed
from adarank.harness.tracking import LocalLog, cut_back, replay

ROOT = Path(__file__).parents[3]
RECORD = {
    "step": 10,
    "budget": 12,
    "kept": 12,
    "parameters": 1548,
    "ranks": {"layer.0.query": 8, "layer.1.query": 4},
    "score_quantiles": {"layer.0.query": [0.0, math.inf], "layer.1.query": [0.0, 1.0]},
}


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def log_a_run(folder: Path) -> None:
    log = LocalLog(folder)
    for step in (5, 10, 15):
        log.metrics(step, "train", {"loss": 1 / step})
    log.allocation(RECORD)
    log.allocation(RECORD | {"step": 20})
    log.metrics(10, "test", {"accuracy": 0.5})  # the best checkpoint's, out of order
    log.finish({"status": "finished", "metric": {"best": math.nan}})


def test_lines_have_the_documented_fields_and_no_number_that_json_lacks(tmp_path):
    log = LocalLog(tmp_path)
    log.metrics(3, "dev", {"accuracy": 0.75, "loss": math.nan})
    log.allocation(RECORD)
    log.finish({"status": "finished", "metric": {"best": -math.inf}})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert line == '{"step": 3, "split": "dev", "accuracy": 0.75, "loss": null}'
    header, allocation = rows(tmp_path / "allocations.jsonl")
    assert header == {"modules": ["layer.0.query", "layer.1.query"]}
    assert allocation["ranks"] == [8, 4]
    assert allocation["score_quantiles"]["layer.0.query"] == [0.0, None]
    assert json.loads((tmp_path / "summary.json").read_text()) == {"status": "finished", "metric": {"best": None}}


def test_a_killed_run_leaves_whole_lines(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from adarank.harness.tracking import LocalLog\n"
        "log = LocalLog(Path(sys.argv[1]))\n"
        "for step in range(20): log.allocation({'step': step, 'ranks': {f'layer.{n}.query': n for n in range(2000)}})\n"
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT).returncode == -9
    _, *records = rows(tmp_path / "allocations.jsonl")
    assert [record["step"] for record in records] == list(range(20))


def test_a_fresh_log_starts_from_nothing(tmp_path):
    log_a_run(tmp_path)
    LocalLog(tmp_path).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == (tmp_path / "allocations.jsonl").read_bytes() == b""
    assert not (tmp_path / "summary.json").exists()


def test_cut_back_drops_later_steps_the_test_and_a_torn_line(tmp_path):
    log_a_run(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "spl')
    cut_back(tmp_path, 10)
    assert [(row["step"], row["split"]) for row in rows(tmp_path / "metrics.jsonl")] == [
        (5, "train"),
        (10, "train"),
    ]  # nor test, which the resumed run measures again
    assert rows(tmp_path / "allocations.jsonl") == []  # its step 10 is the 11th
    cut_back(tmp_path, 11)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["allocations.jsonl", "metrics.jsonl", "summary.json"]


def test_a_broken_line_in_the_middle_is_an_error_and_changes_nothing(tmp_path):
    text = '{"step": 1}\n{"st\n{"step": 2}\n'
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(RunFailed, match=r"metrics\.jsonl: line 2 is damaged; force=true runs it again"):
        cut_back(tmp_path, 1)
    assert (tmp_path / "metrics.jsonl").read_text() == text


def test_a_resumed_log_continues_after_its_step(tmp_path):
    log_a_run(tmp_path)
    log = LocalLog(tmp_path, step=10)
    log.metrics(11, "train", {"loss": 0.0})
    log.close()
    assert [row["step"] for row in rows(tmp_path / "metrics.jsonl")] == [5, 10, 11]
    assert not (tmp_path / "summary.json").exists()


def test_replay_gives_the_same_files_in_order_of_steps(tmp_path):
    old, new, again = (tmp_path / name for name in ("old", "new", "again"))
    for folder in (old, new, again):
        folder.mkdir()
    log_a_run(old)
    replay(old, LocalLog(new))
    replay(new, LocalLog(again))
    assert [row["step"] for row in rows(new / "metrics.jsonl")] == [5, 10, 10, 15]
    for name in ("metrics.jsonl", "allocations.jsonl", "summary.json"):
        assert sorted((new / name).read_text().splitlines()) == sorted((old / name).read_text().splitlines())
        assert (again / name).read_bytes() == (new / name).read_bytes()
