"""allocations.jsonl: small, readable in both of its forms, and whole whenever the run is killed."""

import json

import pytest

from adarank.harness.tracking import LocalLog, replay
from adarank.runs import allocations

MODULES = [f"model.layers.{block}.self_attn.{kind}_proj" for block in range(2) for kind in "qkv"]


def record(step, modules=MODULES, scores=1.0):
    return {
        "step": step,
        "budget": 12,
        "unit": "triplets",
        "kept": 12,
        "parameters": 1548,
        "slack": 0,
        "ranks": dict.fromkeys(modules, step % 7),
        "score_quantiles": {name: [scores / (step + 3 + k) for k in range(5)] for name in modules},
    }


def log_steps(log, steps, **options):
    for step in steps:
        log.allocation(record(step, **options))


def numbers_with_quantiles(folder):
    records, bad = allocations.read(folder / "allocations.jsonl")
    assert not bad
    return [i for i, found in enumerate(records, start=1) if "score_quantiles" in found]


def test_the_header_names_the_modules_and_records_hold_arrays(tmp_path):
    log = LocalLog(tmp_path)
    log_steps(log, [4, 9])
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "allocations.jsonl").read_text().splitlines()]
    assert lines[0] == {"modules": MODULES}
    assert lines[1] == {**record(4), "ranks": [4] * 6}
    assert list(lines[1]) == list(record(4)), "keys in their order"
    assert allocations.read(tmp_path / "allocations.jsonl") == ([record(4), record(9)], [])


def test_the_form_that_names_modules_in_every_line_is_read(tmp_path):
    path = tmp_path / "allocations.jsonl"
    path.write_text("".join(json.dumps(record(step)) + "\n" for step in (4, 9)))
    assert allocations.read(path) == ([record(4), record(9)], [])


def test_damaged_lines_are_numbered(tmp_path):
    path = tmp_path / "allocations.jsonl"
    assert allocations.read(path) == ([], [])
    path.write_text(
        allocations.header(["a", "b"])
        + '{"step": 1, "ranks": [1, 2]}\n{"step": 2, "ranks": [1]}\n[]\n{"step": 3}\n{"st'
    )
    assert allocations.read(path) == ([{"step": 1, "ranks": {"a": 1, "b": 2}}], [3, 4, 5, 6])


@pytest.mark.parametrize("count", [1, 5, 8, 100])
def test_a_finished_run_has_the_quantiles_of_powers_of_two_and_of_the_last(tmp_path, count):
    log = LocalLog(tmp_path)
    log_steps(log, range(count))
    log.finish({})
    assert numbers_with_quantiles(tmp_path) == sorted({n for n in (1, 2, 4, 8, 16, 32, 64) if n <= count} | {count})


def test_the_last_line_has_its_quantiles_at_every_moment(tmp_path):
    log = LocalLog(tmp_path)
    for step in range(100):
        log.allocation(record(step))
        numbers = numbers_with_quantiles(tmp_path)
        assert numbers[-1] == step + 1
        assert len(numbers) <= 7 + allocations.SURPLUS + 1
    log.close()


@pytest.mark.parametrize(("killed", "checkpoint"), [(60, 41), (45, 41), (90, 10), (3, 1), (99, 99), (100, 100)])
def test_a_resumed_run_leaves_the_same_file(tmp_path, killed, checkpoint):
    """Killed after `killed` allocations; its checkpoint was saved after the first `checkpoint` of them."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for folder in (whole, resumed):
        folder.mkdir()
    log = LocalLog(whole)
    log_steps(log, range(100))
    log.finish({})
    log_steps(LocalLog(resumed), range(killed))  # and never closed
    log = LocalLog(resumed, step=checkpoint)
    log_steps(log, range(checkpoint, 100))
    log.finish({})
    assert (resumed / "allocations.jsonl").read_bytes() == (whole / "allocations.jsonl").read_bytes()


def test_replay_sends_ranks_by_name(tmp_path):
    log = LocalLog(tmp_path)
    log_steps(log, [4, 9, 14])
    log.finish({})
    (tmp_path / "copy").mkdir()
    replay(tmp_path, LocalLog(tmp_path / "copy"))
    assert (tmp_path / "copy" / "allocations.jsonl").read_bytes() == (tmp_path / "allocations.jsonl").read_bytes()


@pytest.mark.slow
def test_1500_allocations_over_224_modules_stay_below_5_mb(tmp_path):
    kinds = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
             "mlp.up_proj", "mlp.down_proj"]  # fmt: skip
    modules = [f"model.layers.{block}.{kind}" for block in range(32) for kind in kinds]
    assert len(modules) == 224
    path, largest = tmp_path / "allocations.jsonl", 0
    log = LocalLog(tmp_path)
    for step in range(1500):
        log.allocation(record(step, modules, scores=1 / 3))
        largest = max(largest, path.stat().st_size)
    log.finish({})
    assert path.stat().st_size < largest < 5_000_000
