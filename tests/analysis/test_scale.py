"""A sweep of thousands of runs is read in seconds: 3,000 folders in 5 s, tested on a fifth of them."""

import time

import pytest

from analysis.load import read_runs


@pytest.fixture
def sweep(tmp_path, write_run):
    """600 folders: 20 configurations × 30 seeds, one in ten of them failed, half-written or damaged."""
    source = write_run(tmp_path / "source", "adalora", 0)
    names = ("config.yaml", "status.json", "summary.json")
    files = {name: (source / name).read_text() for name in names}
    broken = [
        ("status.json", '{"state": "failed", "error": "gone"}'),
        ("summary.json", '{"sta'),
        ("summary.json", None),
    ]
    out = tmp_path / "out"
    for place in range(600):
        folder = out / f"adalora-{place // 30:08x}-s{place % 30}"
        folder.mkdir(parents=True)
        contents = {**files, "summary.json": files["summary.json"].replace('"seed": 0', f'"seed": {place % 30}')}
        if place % 10 == 0:
            name, content = broken[place // 10 % 3]
            contents[name] = content
        for name, content in contents.items():
            if content is not None:
                (folder / name).write_text(content)
    return out


def test_a_large_sweep_is_read_quickly_and_no_folder_is_dropped(sweep):
    started = time.process_time()
    runs = read_runs(sweep)
    took = time.process_time() - started
    states = [run.state for run in runs]
    assert (len(runs), states.count("finished")) == (600, 540)
    assert {state: states.count(state) for state in ("failed", "corrupt", "incomplete")} == {
        "failed": 20,
        "corrupt": 20,
        "incomplete": 20,
    }
    assert all(run.reason for run in runs if run.state != "finished")
    assert took < 1.0
