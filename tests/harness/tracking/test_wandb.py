"""Every test speaks to the real wandb package, and online ones to a server on the loopback that keeps what arrives."""

import inspect
import json
import logging
import os
import pty
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import get_method
from omegaconf import OmegaConf

from adarank.errors import SettingError
from adarank.harness.config.spec import PASSED
from adarank.harness.tracking import open_log
from adarank.harness.tracking.wandb import rank_heatmap, wandb_copy
from tests.harness.tracking.wandb_server import WandbServer, environment
from tests.representatives import representatives

ROOT = Path(__file__).parents[3]
CONFIG = {"method": "adalora", "rank": 8, "seed": 0, "train": {"lr": 1e-3, "steps": 40}}
SUMMARY = {
    "status": "finished",
    "error": None,
    "metric": {"name": "accuracy", "higher_is_better": True, "best": 0.7, "best_step": 20, "last": 0.6, "test": 0.65},
    "rank": {"budget_triplets": 6, "final": {"encoder.layer.0.query": 4, "encoder.layer.1.query": 2}},
    "time": {"train_s": 1.5},
}

# The same run in a process of its own; its arguments: a JSON object of settings, the run's folder, then what to kill.
PROCESS = """
import json, os, signal, sys, time
from functools import partial
from pathlib import Path
from adarank.harness.tracking import open_log
from adarank.harness.tracking.wandb import rank_heatmap, wandb_copy
from tests.harness.tracking.test_wandb import log_a_run

def kill():
    if sys.argv[3:]:
        os.kill(int(sys.argv[3]) if sys.argv[3] != "service" else service(), signal.SIGKILL)
        time.sleep(0.5)

def service():
    own = str(os.getpid())
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            name, _, rest = (folder / "stat").read_text().partition("(")[2].rpartition(")")
            if name.startswith("wandb-core") and rest.split()[1] == own:
                return int(folder.name)
    raise LookupError("no wandb-core")

tracker, folder = partial(wandb_copy, **json.loads(sys.argv[1])), Path(sys.argv[2])
log_a_run(tracker, folder, between=kill)
if sys.argv[3:] == ["service"]:
    (folder / "next").mkdir()
    log_a_run(partial(tracker, mode="offline"), folder / "next")
sys.exit(3)
"""


@pytest.fixture(autouse=True)
def fresh_wandb(monkeypatch, tmp_path):
    """No key, settings or session but a test's own, whatever ran before in this process."""
    if sys.modules.get("wandb"):
        sys.modules["wandb"].teardown()
    for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield
    if sys.modules.get("wandb"):
        sys.modules["wandb"].teardown()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def server(monkeypatch):
    with WandbServer() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


def log_a_run(tracker, folder, name="adalora-r8-qkv-s0", between=lambda: None):
    with open_log(tracker, folder=folder, config=CONFIG, name=name, group="sweep") as log:
        for step in range(1, 41):
            log.metrics(step, "train", {"loss": 1 / step})
            if step == 20:
                between()
            if step % 10 == 0:
                log.metrics(step, "dev", {"accuracy": step / 50})
                ranks = {"encoder.layer.0.query": 4, "encoder.layer.1.query": 4 - step // 20}
                log.allocation({"step": step, "budget": 8, "kept": 8, "parameters": 96, "ranks": ranks})
        log.metrics(20, "test", {"accuracy": 0.65})
        log.finish(SUMMARY)


def run_process(folder, settings, *kill, **options):
    begin = time.monotonic()
    command = [sys.executable, "-c", PROCESS, json.dumps(settings), str(folder), *map(str, kill)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, **options)
    return result, time.monotonic() - begin


def assert_complete(folder):
    count = {name: len((folder / name).read_text().splitlines()) for name in ("metrics.jsonl", "allocations.jsonl")}
    assert count == {"metrics.jsonl": 45, "allocations.jsonl": 1 + 4}
    assert json.loads((folder / "summary.json").read_text())["status"] == "finished"


def assert_arrived(run):
    """The server holds what log_a_run logged."""
    config = {name: entry["value"] for name, entry in json.loads(run["config"]).items()}
    assert config.items() >= CONFIG.items()
    history = run["history"]
    assert [(row["step"], row["train/loss"]) for row in history if "train/loss" in row] == [
        (step, 1 / step) for step in range(1, 41)
    ]
    assert [(row["step"], row["dev/accuracy"]) for row in history if "dev/accuracy" in row] == [
        (step, step / 50) for step in (10, 20, 30, 40)
    ]
    assert [(row["step"], row["test/accuracy"]) for row in history if "test/accuracy" in row] == [(20, 0.65)]
    allocations = [row for row in history if "allocation/kept" in row]
    assert [(row["step"], row["allocation/mean_rank"]) for row in allocations] == [
        (10, 4),
        (20, 3.5),
        (30, 3.5),
        (40, 3),
    ]
    assert {(row["allocation/budget"], row["allocation/parameters"]) for row in allocations} == {(8, 96)}
    pictures = [(row["step"], row["allocation/ranks"]["path"]) for row in history if "allocation/ranks" in row]
    assert [step for step, _ in pictures] == [10, 20, 40]  # allocations 1, 2, 4
    assert all(run["files"][path].startswith(b"\x89PNG") for _, path in pictures)
    summary = run["summary"]
    assert {name: summary[name] for name in ("best", "last", "test", "time/train_s", "rank/budget_triplets")} == {
        "best": 0.7,
        "last": 0.6,
        "test": 0.65,
        "time/train_s": 1.5,
        "rank/budget_triplets": 6,
    }
    assert run["exitcode"] == 0


def warnings(caplog):
    """What the project said; pytest hears W&B's debug log too."""
    return [record for record in caplog.records if record.name.startswith("adarank")]


def sync(kept, server):
    """`wandb sync` of the folder that W&B keeps for one run."""
    command = [sys.executable, "-m", "wandb", "sync", "--include-online", str(kept)]
    environ = os.environ | server.environment
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ, cwd=kept)  # logs in cwd
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
def test_online_runs_arrive_whole_and_apart(server, folder, tmp_path, caplog, capfd):
    (tmp_path / "second").mkdir()
    log_a_run(partial(wandb_copy, mode="online", tags=["a", "b"]), folder)
    log_a_run(partial(wandb_copy, mode="online", group="mine", project="other"), tmp_path / "second", name="second")
    assert len(server.runs) == 2
    run, second = server.run_named("adalora-r8-qkv-s0"), server.run_named("second")
    assert_arrived(run)
    assert_arrived(second)
    assert (run["project"], run["groupName"], run["jobType"], run["tags"]) == ("adarank", "sweep", "train", ["a", "b"])
    assert (second["project"], second["groupName"]) == ("other", "mine")
    assert_complete(folder)
    assert list(folder.glob("wandb/run-*/run-*.wandb"))
    assert not warnings(caplog)
    assert capfd.readouterr() == ("", "")


def test_an_offline_run_lies_in_its_folder_until_it_is_synced(server, folder, caplog, capfd, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    log_a_run(wandb_copy, folder)  # mode null: W&B's own variable decides
    assert_complete(folder)
    assert list(folder.glob("wandb/offline-run-*/run-*.wandb"))
    assert not server.runs
    assert not warnings(caplog)
    assert capfd.readouterr() == ("", "")
    monkeypatch.delenv("WANDB_MODE")
    sync(*folder.glob("wandb/offline-run-*"), server)
    assert_arrived(server.run_named("adalora-r8-qkv-s0"))


def test_a_run_that_raises_is_marked_failed(server, folder):
    def interrupt():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        log_a_run(wandb_copy, folder, between=interrupt)
    run = server.run_named("adalora-r8-qkv-s0")
    assert run["exitcode"] == 1
    assert run["history"][-1]["train/loss"] == 1 / 20
    assert "best" not in run["summary"]


@pytest.mark.parametrize("status", representatives(["diverged", "failed"], 1))
def test_a_run_that_ends_without_a_result_is_failed_in_wandb(server, folder, status):
    with open_log(wandb_copy, folder=folder, config=CONFIG, name="n", group="g") as log:
        log.metrics(1, "train", {"loss": 1.0})
        log.finish({"status": status, "error": "the loss became nan by step 1", "metric": None, "rank": None})
    run = server.run_named("n")
    assert run["exitcode"] == 1
    assert (run["summary"]["status"], run["summary"]["error"]) == (status, "the loss became nan by step 1")


def test_disabled_does_not_even_import_wandb(folder, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    log_a_run(partial(wandb_copy, mode="disabled"), folder)
    assert_complete(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["allocations.jsonl", "metrics.jsonl", "summary.json"]
    assert not warnings(caplog)


def test_a_missing_wandb_warns_once(folder, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    log_a_run(wandb_copy, folder)
    assert_complete(folder)
    (record,) = warnings(caplog)
    assert record.levelno == logging.WARNING
    assert "wandb" in record.message


def test_a_place_that_cannot_be_written_warns_once(folder, caplog):
    (folder / "wandb").write_text("in the way")
    log_a_run(partial(wandb_copy, mode="offline"), folder)
    assert_complete(folder)
    (record,) = warnings(caplog)
    assert "Not a directory" in record.message


@pytest.mark.slow
@pytest.mark.parametrize("stdin", representatives(["terminal", "closed"], 1))
def test_without_a_key_nothing_is_asked_and_the_run_is_kept_for_later(folder, stdin):
    ours, theirs = pty.openpty()
    streams = {"stdin": theirs} if stdin == "terminal" else {"preexec_fn": partial(os.close, 0)}
    environ = os.environ | {"WANDB_BASE_URL": "http://127.0.0.1:9", "TERM": "xterm"}
    command = [sys.executable, "-c", PROCESS, json.dumps({"mode": "online"}), str(folder)]
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environ, cwd=ROOT, **streams)
    assert process.wait(30) == 3
    os.set_blocking(ours, False)
    said = os.read(ours, 100_000).decode()
    assert said.count("\n") == 1
    assert "No API key configured" in said
    assert "wandb sync" in said
    assert_complete(folder)
    assert list(folder.glob("wandb/offline-run-*/run-*.wandb"))


@pytest.mark.slow
def test_an_unreachable_server_turns_the_run_offline(folder, monkeypatch, caplog):
    with WandbServer() as gone:
        pass
    for name, value in gone.environment.items():
        monkeypatch.setenv(name, value)
    log_a_run(partial(wandb_copy, mode="online", init_timeout=1), folder)
    assert_complete(folder)
    (record,) = warnings(caplog)
    assert "refused" in record.message
    with WandbServer() as server:
        (kept,) = folder.glob("wandb/offline-run-*")
        assert f"wandb sync --include-online {kept}`" in record.message
        sync(kept, server)
        assert_arrived(server.run_named("adalora-r8-qkv-s0"))


@pytest.mark.slow
def test_a_server_that_dies_holds_up_neither_the_run_nor_its_exit(folder):
    script = [sys.executable, "-m", "tests.harness.tracking.wandb_server"]
    dying = subprocess.Popen(script, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    environ = os.environ | environment(int(dying.stdout.readline()))
    result, seconds = run_process(folder, {"finish_timeout": 2}, dying.pid, env=environ)
    dying.communicate()
    assert dying.returncode == -9
    assert result.returncode == 3, result.stderr
    assert seconds < 2 + 10
    assert result.stderr.count("Tracking stopped") == 1
    assert "Traceback" not in result.stderr
    assert_complete(folder)
    with WandbServer() as server:
        sync(*folder.glob("wandb/run-*"), server)  # as the warning says
        assert_arrived(server.run_named("adalora-r8-qkv-s0"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds W&B's background process in /proc")
def test_a_dead_background_process_costs_one_run_its_copy_and_no_more(server, folder):
    result, seconds = run_process(folder, {"mode": "online"}, "service")
    assert result.returncode == 3, result.stderr
    assert seconds < 15
    assert result.stderr.count("Tracking stopped") == result.stderr.count("\n") == 1
    assert_complete(folder)
    assert_complete(folder / "next")
    assert list((folder / "next").glob("wandb/offline-run-*/run-*.wandb"))


def test_a_server_that_refuses_the_history_does_no_harm(server, folder, capfd):
    server.refuse = 403
    log_a_run(wandb_copy, folder)
    assert_complete(folder)
    assert not server.run_named("adalora-r8-qkv-s0")["history"]
    assert "wandb sync" in capfd.readouterr().err  # W&B's own warning is let through


@pytest.mark.parametrize(("setting", "value"), [("mode", "on"), ("init_timeout", 0), ("finish_timeout", -1)])
def test_a_wrong_setting_is_named(folder, setting, value):
    with pytest.raises(SettingError, match=rf"tracker\.{setting} must be .*\(got {value}\)"):
        log_a_run(partial(wandb_copy, **{setting: value}), folder)


@pytest.mark.parametrize("tracker", ["none", "wandb"])
def test_the_yaml_lists_every_setting_with_the_default_of_its_function(tracker):
    settings = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "tracker" / f"{tracker}.yaml"))
    target = get_method(settings.pop("_target_"))
    parameters = inspect.signature(target).parameters.values()
    assert settings == {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} <= PASSED["tracker"]


def test_the_picture_follows_the_ranks():
    same = rank_heatmap({"layer.0.q": 4, "layer.1.q": 8}, highest=12, title="t")
    other = rank_heatmap({"layer.0.q": 8, "layer.1.q": 4}, highest=12, title="t")
    assert same.dtype == np.uint8
    assert same.ndim == 3
    assert same.shape[2] == 4
    assert same.shape == other.shape
    assert (same != other).any()
