"""A sweep that ran without W&B arrives whole, once, as one group; with the real package and a server on the
loopback."""

import json
from functools import partial

import pytest

from adarank.cli import main
from adarank.harness.tracking import no_copy, open_log, wandb_state
from adarank.harness.tracking.wandb import wandb_copy
from adarank.runs import state as runs
from tests.harness.tracking import test_wandb
from tests.harness.tracking.test_wandb import SUMMARY, assert_arrived, log_a_run
from tests.harness.tracking.wandb_server import WandbServer

fresh_wandb, folder, server = test_wandb.fresh_wandb, test_wandb.folder, test_wandb.server  # fixtures
CONFIG = """\
method: adalora
rank: 8
seed: {seed}
targets: qkv
quantization: null
adapter: {{_target_: adarank.adapt}}
tracker: {tracker}
train: {{lr: 0.001, steps: 40}}
"""
NONE = "{_target_: adarank.harness.tracking.no_copy}"


def make(out, seed, tracker=no_copy, state="finished", node=NONE):
    folder = out / f"adalora-0123456789-s{seed}"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG.format(seed=seed, tracker=node))
    log_a_run(tracker, folder, name=f"adalora-r8-qkv-s{seed}")
    runs.write_status(folder, state, 40, steps=40)
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / "mysweep"


@pytest.mark.slow
def test_one_group_arrives_whole_and_once(out, server, capsys):
    folders = [make(out, seed) for seed in range(3)]
    make(out, 3, state="running")
    (make(out, 4, state="failed") / "summary.json").unlink()
    assert main(["sync", str(out), "--project", "mine", "--entity", "team"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "3 sent, 0 already there, 2 not finished"
    assert "adalora-0123456789-s3: stale, not sent" in said
    assert "adalora-0123456789-s4: failed, not sent" in said
    assert len(server.runs) == 3
    for seed in range(3):
        run = server.run_named(f"adalora-r8-qkv-s{seed}")
        config = {k: v["value"] for k, v in json.loads(run["config"]).items()}
        assert config["seed"] == seed
        run["config"] = json.dumps({k: {"value": v} for k, v in (config | {"seed": 0}).items()})
        assert_arrived(run)
        assert (run["project"], run["entity"], run["groupName"]) == ("mine", "team", "mysweep")

    server.runs.clear()
    assert main(["sync", str(out), "--project", "mine", "--entity", "team"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "0 sent, 3 already there, 2 not finished"
    assert not server.runs  # nothing was even begun

    name = wandb_state.read(folders[1])["id"]
    with (folders[1] / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "split": "train", "loss": 9.0}\n')
    assert main(["sync", str(out), "--project", "mine", "--entity", "team"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 sent, 2 already there, 2 not finished"
    assert list(server.runs) == [name]
    assert [row for row in server.runs[name]["history"] if row.get("train/loss") == 9.0]


@pytest.mark.slow
def test_what_was_sent_while_it_ran_is_there_already(out, server, capsys):
    node = "{_target_: adarank.harness.tracking.wandb.wandb_copy, project: live, entity: null, group: g}"
    make(out, 0, partial(wandb_copy, mode="online", project="live"), node=node)
    offline = make(out, 1, partial(wandb_copy, mode="offline", project="live"), node=node)
    assert main(["sync", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 sent, 1 already there, 0 not finished"
    assert len(server.runs) == 2
    assert wandb_state.read(offline)["id"] in server.runs
    run = server.runs[wandb_state.read(offline)["id"]]
    assert (run["project"], run["groupName"], run["displayName"]) == ("live", "g", "adalora-r8-qkv-s1")


def test_no_key_is_a_sentence(out, capsys):
    make(out, 0)
    assert main(["sync", str(out)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: adalora-0123456789-s0 could not be sent to W&B (No API key configured")
    assert said.count("\n") == 1


@pytest.mark.slow
def test_a_dead_server_is_a_sentence_and_the_rest_is_sent_later(out, monkeypatch, capsys):
    with WandbServer() as gone:
        pass
    for key, value in gone.environment.items():
        monkeypatch.setenv(key, value)
    node = "{_target_: adarank.harness.tracking.wandb.wandb_copy, init_timeout: 1.0}"
    folder = make(out, 0, node=node)
    assert main(["sync", str(out)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: adalora-0123456789-s0 could not be sent to W&B (")
    assert said.endswith("0 were sent before it; run the same command again to send the rest\n")
    assert wandb_state.read(folder)["digest"] is None
    with WandbServer() as server:
        for key, value in server.environment.items():
            monkeypatch.setenv(key, value)
        assert main(["sync", str(out)]) == 0
        assert len(server.runs) == 1


def test_no_folder_is_refused(tmp_path, capsys):
    assert main(["sync", str(tmp_path / "nowhere")]) == 2
    assert "OUT must be a folder that holds runs" in capsys.readouterr().err


@pytest.mark.slow
def test_a_resumed_run_s_history_is_whole_under_one_id(server, folder):
    def interrupt():
        raise ZeroDivisionError

    tracker = partial(wandb_copy, mode="online")
    with pytest.raises(ZeroDivisionError):
        log_a_run(tracker, folder, between=interrupt)  # at step 20; the checkpoint is of step 15
    with open_log(
        tracker, folder=folder, config=test_wandb.CONFIG, name="adalora-r8-qkv-s0", group="sweep", resume_step=15
    ) as log:
        for step in range(16, 41):
            log.metrics(step, "train", {"loss": 1 / step})
            if step % 10 == 0:
                log.metrics(step, "dev", {"accuracy": step / 50})
                ranks = {"encoder.layer.0.query": 4, "encoder.layer.1.query": 4 - step // 20}
                log.allocation({"step": step, "budget": 8, "kept": 8, "parameters": 96, "ranks": ranks})
        log.metrics(20, "test", {"accuracy": 0.65})
        log.finish(SUMMARY)
    assert len(server.runs) == 1
    assert_arrived(server.run_named("adalora-r8-qkv-s0"))
