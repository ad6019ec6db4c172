import json

import pytest

from adarank.runs.files import read_lines
from analysis.load import FolderError, number, read_config, read_counts, read_runs, text


def states(out):
    return {run.name: (run.state, run.reason) for run in read_runs(out)}


def test_finished_runs(quickstart):
    runs = read_runs(quickstart)
    assert len(runs) == 6
    assert {run.state for run in runs} == {"finished"}
    assert sorted(run.seed for run in runs) == [0, 0, 0, 1, 1, 1]
    assert len({run.configuration for run in runs}) == 3
    assert all(run.configuration == run.folder.name.rsplit("-", 1)[0] for run in runs)


def test_runs_are_found_at_any_depth_but_not_in_hidden_or_report_folders(tmp_path, write_run):
    deep = write_run(tmp_path / "a" / "b", "lora", 0)
    write_run(tmp_path / ".hidden", "lora", 1)
    write_run(tmp_path / "report", "lora", 2)
    (tmp_path / "multirun.yaml").write_text("x: 1\n")
    (deep / "checkpoint").mkdir()
    (deep / "checkpoint" / "config.yaml").write_text("x: 1\n")  # inside a run folder: not a run
    assert [run.name for run in read_runs(tmp_path)] == [f"a/b/{deep.name}"]


def test_a_linked_folder_is_read_once_and_a_circle_ends(tmp_path, write_run):
    run = write_run(tmp_path / "elsewhere", "lora", 0)
    out = tmp_path / "out"
    out.mkdir()
    (out / run.name).symlink_to(run, target_is_directory=True)
    (out / "again").symlink_to(run, target_is_directory=True)
    (out / "circle").symlink_to(out, target_is_directory=True)
    assert len(read_runs(out)) == 1


@pytest.mark.parametrize("state", ["failed", "diverged"])
def test_an_ended_run_is_listed_with_its_error(tmp_path, write_run, state):
    folder = write_run(tmp_path)
    (folder / "status.json").write_text(json.dumps({"state": state, "error": "The loss became NaN at step 3."}))
    assert states(tmp_path) == {folder.name: (state, "The loss became NaN at step 3.")}


def test_a_running_run_is_not_counted_even_beside_an_old_summary(tmp_path, write_run):
    folder = write_run(tmp_path)
    (folder / "status.json").write_text('{"state": "running", "step": 40, "heartbeat": "2026-01-01T00:00:00Z"}')
    state, reason = states(tmp_path)[folder.name]
    assert state == "running"
    assert "step 40" in reason
    assert "2026-01-01" in reason


def test_a_summary_alone_is_enough(tmp_path, write_run):
    folder = write_run(tmp_path)
    (folder / "status.json").unlink()
    assert states(tmp_path) == {folder.name: ("finished", "")}


@pytest.mark.parametrize(
    ("file", "content", "state", "word"),
    [
        ("summary.json", '{"status": "fin', "corrupt", "summary.json cannot be read"),
        ("summary.json", "[1, 2]", "corrupt", "summary.json is not an object"),
        ("status.json", "", "corrupt", "status.json cannot be read"),
        ("status.json", b"\xff\xfe\x00", "corrupt", "status.json cannot be read"),
        ("summary.json", None, "incomplete", "no summary.json"),
        ("summary.json", '{"status": "failed"}', "incomplete", "failed"),
    ],
)
def test_half_written_and_damaged_folders_are_listed(tmp_path, write_run, file, content, state, word):
    folder = write_run(tmp_path)
    path = folder / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found, reason = states(tmp_path)[folder.name]
    assert found == state
    assert word in reason


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"method": None}, "method"),
        ({"metric": None}, "metric.name"),
        ({"metric": [1]}, "metric is not an object"),
        ({"metric__test": float("nan")}, "metric.test"),
        ({"metric__test": None, "metric__last": None}, "neither"),
        ({"rank__final": {"a": "eight"}}, "rank.final"),
        ({"seed": "one"}, "seed"),
    ],
)
def test_a_summary_that_cannot_be_counted_names_the_field(tmp_path, write_run, changes, word):
    folder = write_run(tmp_path, "lora", 0, **changes)
    state, reason = states(tmp_path)[folder.name]
    assert state == "corrupt"
    assert word in reason


def test_an_empty_folder_named_as_a_run_is_listed(tmp_path):
    (tmp_path / "lora-0a1b2c3d-s0").mkdir()
    (tmp_path / "notes").mkdir()
    assert [(run.name, run.state) for run in read_runs(tmp_path)] == [("lora-0a1b2c3d-s0", "incomplete")]


def test_one_seed_in_two_folders_counts_once(tmp_path, write_run):
    write_run(tmp_path / "a", "lora", 0)
    second = write_run(tmp_path / "b", "lora", 0)
    found = states(tmp_path)
    assert sorted(state for state, _ in found.values()) == ["duplicate", "finished"]
    assert found[f"b/{second.name}"][1].endswith(f"a/{second.name}")


def test_the_score_is_test_or_else_last(tmp_path, write_run):
    write_run(tmp_path, "lora", 0, metric__test=0.5)
    write_run(tmp_path, "lora", 1, metric__test=None, metric__last=-0.25)
    assert [run.score for run in read_runs(tmp_path)] == [("test", 0.5), ("dev", -0.25)]


def test_unusable_folders_are_one_sentence(tmp_path, write_run):
    with pytest.raises(FolderError, match="is not a folder"):
        read_runs(tmp_path / "absent")
    with pytest.raises(FolderError, match="contains no run folder"):
        read_runs(tmp_path)
    with pytest.raises(FolderError, match="itself a run folder"):
        read_runs(write_run(tmp_path))


def test_config_is_flat_and_a_target_is_its_last_name(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "train: {lr: 1.0e-05, steps: 100}\nscore: {_target_: adarank.scores.adalora, beta1: 0.85}\n"
        "penalty: null\ntarget_modules: [query, value]\ntiny: false\n"
    )
    assert read_config(tmp_path) == {
        "train.lr": "1e-05",
        "train.steps": "100",
        "score": "adalora",
        "score.beta1": "0.85",
        "penalty": "null",
        "target_modules": "query, value",
        "tiny": "false",
    }


@pytest.mark.parametrize("content", [None, "a: [1", "- 1\n"])
def test_an_unreadable_config_is_none(tmp_path, content):
    if content is not None:
        (tmp_path / "config.yaml").write_text(content)
    assert read_config(tmp_path) is None


def test_lines_that_cannot_be_read_are_numbered(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"ste\n7\n{"step": 2}\n{"step":')
    assert read_lines(path) == ([{"step": 1}, {"step": 2}], [2, 3, 5])
    assert read_lines(tmp_path / "absent.jsonl") == ([], [])


def test_counts_are_the_records_without_their_maps(tmp_path):
    path = tmp_path / "allocations.jsonl"
    whole = {"step": 9, "kept": 3, "ranks": {"a": 1, "b": 2}, "score_quantiles": {"a": [0.0]}}
    lines = [
        json.dumps(record) for record in (whole, {"ranks": {"a": 4}, "kept": 4, "step": 11}, {"step": 12, "kept": 5})
    ]
    header = json.dumps({"modules": ["a", "b"]})
    path.write_text(
        "\n".join(
            [
                header,
                *lines,
                '{"step": 15, "kept": 7, "ranks": [3, 4]}',
                "[1]",
                '{"step": 13, "kept": 6, "ranks": {"a"',
                '{"step": 14',
                "",
            ]
        )
    )
    assert [(record["step"], record["kept"]) for record in read_counts(path)] == [(9, 3), (11, 4), (12, 5), (15, 7)]
    path.write_text(header + "\n")
    assert read_counts(path) == []  # a header alone records no allocation
    assert read_counts(tmp_path / "absent.jsonl") == []


def test_number_and_text():
    assert [number(value) for value in (1, 0.5, True, None, "1", float("nan"), float("inf"))] == [1.0, 0.5] + [None] * 5
    assert [text(value) for value in (None, True, 0.01, [1, "a"], "qkv")] == ["null", "true", "0.01", "1, a", "qkv"]
