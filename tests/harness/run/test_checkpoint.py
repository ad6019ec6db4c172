"""Stopped at a record and started again, a run ends as if it had never stopped."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import adarank
from adarank.errors import RunFailed
from adarank.harness.run.checkpoint import STATE, Progress, Saver, _put_back, _take_out, bytes_to_save, trained_tensors
from adarank.harness.run.execute import keep_best
from adarank.harness.run.train import train
from tests.experiments.test_run import inside
from tests.harness.run.test_train import Recorder, setup, trained_state
from tests.representatives import representatives

ROOT = Path(__file__).resolve().parents[3]


class Stop(BaseException):
    """What nothing catches."""


@pytest.mark.parametrize("stop", representatives([5, 20, 35], (20,)))
@pytest.mark.parametrize(
    ("method", "options"),
    representatives(
        [
            ("full", {}),
            ("lora", {"gradient_accumulation_steps": 2, "group_by_length": True, "microbatches": 2}),
            ("adalora", {"compaction": "progressive"}),
            ("adalora", {"compaction": "final"}),
            ("adalora", {}),
        ],
        3,
    ),
)
def test_stopped_and_resumed_is_bit_identical(method, options, stop, tmp_path):
    def go(saver, until=None):
        prepared, splits, spec = setup(method, steps=40, **options)
        log = Recorder()

        def beat(step):
            if until is not None and step > until:
                raise Stop

        try:
            outcome = train(prepared, splits, spec, ("accuracy",), log, beat, lambda _: None, saver)
        except Stop:
            return None
        timeless = (outcome.best, outcome.best_step, outcome.last, outcome.test)
        return timeless, log, trained_state(prepared.model)

    whole, whole_log, whole_state = go(None)
    assert go(Saver(tmp_path, 0.0, resume=False), until=stop) is None
    saver = Saver(tmp_path, 0.0, resume=True)
    assert saver.step == stop
    found, log, state = go(saver)
    assert found == whole
    assert [line for line in whole_log.lines if line[0] > stop or line[1] == "test"] == log.lines
    assert [r for r in whole_log.allocations if r["step"] >= stop] == log.allocations
    assert state.keys() == whole_state.keys()
    assert all(torch.equal(state[name], whole_state[name]) for name in state)


def test_everything_that_training_changes_is_kept_masks_and_statistics_included(net):
    net.embed = nn.Sequential(net.embed, nn.BatchNorm1d(12))
    adarank.adapt(net, "lora", rank=2, targets=["up"], train=["head"])
    state = trained_tensors(net)
    parts = {f"layers.{i}.up.{part}" for i in range(3) for part in ("Q", "P", "lam", "mask")}
    statistics = {f"embed.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert state.keys() == parts | statistics | {"head.weight", "head.bias"}
    assert all(tensor.data_ptr() == net.state_dict()[name].data_ptr() for name, tensor in state.items())  # no copies


def test_without_resume_what_lies_there_is_left_alone(tmp_path):
    prepared, splits, spec = setup("lora", steps=10)
    train(
        prepared,
        splits,
        spec,
        ("accuracy",),
        Recorder(),
        lambda _: None,
        lambda _: None,
        Saver(tmp_path, 0.0, resume=False),
    )
    assert Saver(tmp_path, 0.0, resume=False).step is None
    saver = Saver(tmp_path, 0.0, resume=True)
    assert saver.step == 10
    saver.remove()
    assert not tmp_path.exists()


@pytest.mark.parametrize(("seconds", "steps"), [(None, []), (3600.0, [10]), (0.0, [5, 10])])
def test_it_saves_no_more_often_than_asked_but_always_after_the_last_step(seconds, steps, tmp_path):
    prepared, splits, spec = setup("lora", steps=10)
    saver, saved = Saver(tmp_path / "c", seconds, False), []

    def beat(step):  # before the save of the same step
        if (tmp_path / "c" / STATE).is_file():
            saved.append(Saver(tmp_path / "c", seconds, True).step)

    train(prepared, splits, spec, ("accuracy",), Recorder(), beat, lambda _: beat(None), saver)
    assert saved == steps


@pytest.mark.parametrize("method", ["full", "adalora"])
def test_the_space_that_a_run_needs_is_what_it_writes(method, tmp_path):
    prepared, splits, spec = setup(method, steps=20)
    kind = {"adapted": method != "full", "adaptive": method == "adalora"}
    needed = bytes_to_save(prepared.model, **kind, checkpoints=True)
    without = bytes_to_save(prepared.model, **kind, checkpoints=False)
    keep = partial(keep_best, adapted=method != "full", folder=tmp_path)
    saver = Saver(tmp_path / "checkpoint", 0.0, False)
    train(prepared, splits, spec, ("accuracy",), Recorder(), lambda _: None, keep, saver)
    written = {path.relative_to(tmp_path).as_posix(): path.stat().st_size for path in tmp_path.rglob("*.safetensors")}
    state = written.pop("checkpoint/state.safetensors")
    best = max(written.pop(name) for name in list(written) if name.startswith(("checkpoint/best-", "checkpoint/last.")))
    (weights,) = written.values()  # of the adapter, without pruned triplets, or of the whole model
    text = 40_000  # bytes for names and shapes
    assert weights + 3 * best - 4 * text <= sum(without.values()) <= 1.5 * weights + 3 * best
    assert state - text <= (sum(needed.values()) - sum(without.values())) / 2 <= 1.1 * state


def test_the_seconds_count_from_the_last_time_that_it_saved(net, tmp_path):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    pieces = net, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0), Progress(best=0.0)
    saver = Saver(tmp_path, 3600.0, resume=False)
    saver._last -= 3600
    saver.save(*pieces)
    (tmp_path / STATE).unlink()
    saver.save(*pieces)
    assert not (tmp_path / STATE).exists()
    saver.save(*pieces, at_once=True)
    assert (tmp_path / STATE).exists()


def test_auto_saves_at_most_once_a_minute_and_for_at_most_a_twentieth_of_the_time(tmp_path, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr("adarank.harness.run.checkpoint.time.monotonic", lambda: clock[0])
    saver = Saver(tmp_path, "auto", resume=False)
    due = []
    for _ in range(3600):  # an hour, a record a second, in which a state takes 10 s to save
        clock[0] += 1
        if saver._is_due():
            due.append(clock[0] - 1000)
            saver._cost = 10.0
            saver._spent += 10.0
            clock[0] += 10
            saver._last = clock[0]
    assert due[0] == 60.0  # what it costs is not known yet
    assert all(10 * (i + 1) <= 0.05 * when + 1e-6 for i, when in enumerate(due[1:], 1))
    assert len(due) == 18
    saver._last, saver._spent, saver._cost = clock[0] - 59, 0.0, 0.0
    assert not saver._is_due()


def test_a_state_without_its_best_checkpoint_is_refused(tmp_path):
    prepared, splits, spec = setup("lora", steps=10)
    saver = Saver(tmp_path / "c", 0.0, resume=False)
    train(prepared, splits, spec, ("accuracy",), Recorder(), lambda _: None, lambda _: None, saver)
    (best,) = (tmp_path / "c").glob("best-*.safetensors")
    best.unlink()
    saver = Saver(tmp_path / "c", 0.0, resume=True)
    with pytest.raises(
        RunFailed, match=r"best-\d+\.safetensors is missing; force=true starts the run from the beginning"
    ):
        train(*setup("lora", steps=10), ("accuracy",), Recorder(), lambda _: None, lambda _: None, saver)


@pytest.mark.parametrize("seconds", [None, 3600.0])
def test_one_best_checkpoint_stays_beside_the_state(seconds, tmp_path, net):
    saver = Saver(tmp_path / "c", seconds, resume=False)
    for step in (5, 10):
        net.head.bias.data.fill_(step)
        saver.keep_best(net, step)
    files = {path.name for path in (tmp_path / "c").iterdir()}
    assert files == ({"best-10.safetensors"} if seconds is None else {"best-5.safetensors", "best-10.safetensors"})
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    saver.save(net, optimizer, scheduler, Progress(best=0.0, best_step=10), at_once=True)
    assert {path.name for path in (tmp_path / "c").glob("best-*")} == {"best-10.safetensors"}
    net.head.bias.data.fill_(-1)
    saver.load_best(net, 10)
    assert net.head.bias.tolist() == [10.0] * 3
    saver.remove()
    assert not (tmp_path / "c").exists()


def test_a_resumed_run_that_saves_no_more_keeps_what_its_state_needs(tmp_path, net):
    """checkpoint_seconds=null deleted the state's best checkpoint, so that the next resumption was refused."""
    saver = Saver(tmp_path, 0.0, resume=False)
    optimizer = torch.optim.AdamW(net.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    saver.keep_best(net, 1)
    saver.save(net, optimizer, scheduler, Progress(best=0.5, step=1, best_step=1))
    for _ in range(2):
        saver = Saver(tmp_path, None, resume=True)
        assert saver.load(net, optimizer, scheduler).best_step == 1
        for step in (2, 3):
            saver.keep_best(net, step)
        assert {path.name for path in tmp_path.glob("best-*")} == {"best-1.safetensors", "best-3.safetensors"}


def test_a_damaged_file_is_refused_in_a_sentence(tmp_path):
    (tmp_path / STATE).write_bytes(b"\x08\0\0\0\0\0\0\0{broken}")
    with pytest.raises(RunFailed, match=r"is damaged .*force=true starts the run from the beginning"):
        Saver(tmp_path, 0.0, resume=True)


def test_any_nesting_of_tensors_numbers_and_names_survives():
    value = {"a": [1, 2.5, None, True, "x"], 3: {"t": torch.arange(3), "e": torch.empty(0, 4)}, "inf": float("-inf")}
    tensors = {}
    found = _put_back(json.loads(json.dumps(_take_out(value, tensors))), tensors)
    assert found["a"] == value["a"]
    assert found["inf"] == value["inf"]
    assert torch.equal(found[3]["t"], value[3]["t"])
    assert found[3]["e"].shape == (0, 4)


def words(out, *arguments):
    return ["tiny=true", "train.log_every=2", "checkpoint_seconds=0", f"out={out}", *arguments]


def command(out, *arguments):
    return [sys.executable, str(ROOT / "experiments" / "run.py"), *words(out, *arguments)]


def result(out):
    """What a run leaves, without times and places."""
    (folder,) = [p for p in out.iterdir() if p.is_dir()]
    summary = json.loads((folder / "summary.json").read_text())
    weights = sorted(p for p in folder.rglob("*.safetensors"))
    return {
        "metrics": (folder / "metrics.jsonl").read_text(),
        "allocations": (folder / "allocations.jsonl").read_text(),
        "rank": summary["rank"],
        "metric": summary["metric"],
        "predictions": (folder / "predictions.npz").read_bytes(),
        "weights": {p.name: p.read_bytes() for p in weights},
    }


def killed_until_finished(out, arguments, kills, draw):
    """Run, kill -9 after a random while, run again, `kills` times; then let it finish, in this process. Returns in how
    many starts it went on from a checkpoint."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    resumes = 0
    for _ in range(kills):
        process = subprocess.Popen(
            command(out, *arguments), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        for line in process.stdout:
            if "->" in line:  # about to train
                time.sleep(draw.uniform(0.0, 2.5))
                break
        os.kill(process.pid, signal.SIGKILL)
        resumes += "resumes from the checkpoint" in process.communicate()[0]
    done = inside(*words(out, *arguments))
    return resumes + ("resumes from the checkpoint" in done.stdout)


@pytest.mark.slow
def test_killed_and_started_again_it_ends_alike(tmp_path):
    arguments = ["method=adalora", "compaction=final", "train.steps=60"]
    assert killed_until_finished(tmp_path / "whole", arguments, 0, random.Random(0)) == 0
    killed_until_finished(tmp_path / "killed", arguments, 1, random.Random(1))
    assert result(tmp_path / "killed") == result(tmp_path / "whole")


@pytest.mark.slow
def test_a_full_disk_stops_a_run_as_if_it_had_been_killed(tmp_path):
    """No file may grow beyond 100 KB here; the checkpoint does, after the first lines were written."""
    arguments = ["method=adalora", "train.steps=20"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (100_000, 100_000))
    full = subprocess.run(
        command(tmp_path / "full", *arguments), preexec_fn=limit, capture_output=True, text=True, env=environment
    )
    assert full.returncode == 1
    (folder,) = (tmp_path / "full").iterdir()
    assert full.stderr == (
        f"error: adalora-r8-all-s0 stopped because {folder} cannot be written (File too large); its files stay, "
        "and the same command resumes the run\n"
    )
    assert json.loads((folder / "status.json").read_text())["state"] == "running"
    assert (folder / "metrics.jsonl").read_text()
    assert not list(folder.rglob("*.tmp")), "nothing half-written stays"
    killed_until_finished(tmp_path / "full", arguments, 0, random.Random(0))
    killed_until_finished(tmp_path / "whole", arguments, 0, random.Random(0))
    assert result(tmp_path / "full") == result(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [["method=full"], ["method=lora"], ["method=adalora"], ["method=adalora", "compaction=final"]],
    ids=lambda a: "-".join(a),
)
def test_five_random_kills_each(arguments, tmp_path):
    arguments = [*arguments, "train.steps=600"]
    killed_until_finished(tmp_path / "whole", arguments, 0, random.Random(0))
    resumes = killed_until_finished(tmp_path / "killed", arguments, 5, random.Random(len(arguments[0])))
    print(f"{arguments}: resumed {resumes} times")
    assert resumes > 0
    assert result(tmp_path / "killed") == result(tmp_path / "whole")
