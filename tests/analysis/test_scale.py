"""A mixed sweep: whatever became of a run, its folder is counted or listed with a reason.

How long thousands of them take is measured by experiments/bench/many_runs.py.
"""

import json
from collections import Counter

import pytest

from analysis.load import read_runs
from analysis.report import as_text, load, write_report

BROKEN = {  # what a folder holds in place of a finished run's: (file, contents; None: without the file)
    "failed": ("status.json", '{"state": "failed", "error": "The card fell off the bus."}'),
    "diverged": ("status.json", '{"state": "diverged", "error": "The loss is NaN."}'),
    "running": ("status.json", '{"state": "running", "step": 7, "heartbeat": "now"}'),
    "corrupt": ("summary.json", '{"sta'),
    "incomplete": ("summary.json", None),
    "nothing written": None,
}


@pytest.fixture
def sweep(tmp_path, write_run):
    """24 finished runs, 6 seeds of 4 ranks, and six folders of each kind of BROKEN, half of them two levels deeper."""
    out = tmp_path / "out"
    for rank in (2, 4, 8, 16):
        for seed in range(6):
            write_run(out, "adalora", seed, rank)
    source = {path.name: path.read_text() for path in next(out.glob("adalora-*-s0")).iterdir()}
    for place, change in enumerate(BROKEN.values()):
        for seed in range(6):
            folder = out / ("" if seed % 2 else "more/of it") / f"sora-{place:08x}-s{seed}"
            folder.mkdir(parents=True)
            for name, content in (source | dict([change])).items() if change else ():
                if content is not None:
                    (folder / name).write_text(content)
    return out


def test_no_folder_is_dropped(sweep):
    folders = {path.relative_to(sweep).as_posix() for path in sweep.rglob("*-s?")}
    runs = read_runs(sweep)
    assert {run.name for run in runs} == folders
    assert len(runs) == len(folders) == 24 + 36
    assert Counter(run.state for run in runs) == {
        "finished": 24, "failed": 6, "diverged": 6, "running": 6, "corrupt": 6, "incomplete": 12,
    }  # fmt: skip
    assert all(run.reason for run in runs if run.state != "finished")


@pytest.mark.usefixtures("no_pictures")
def test_the_terminal_and_the_page_name_every_one_of_them(sweep):
    found = load(sweep)
    printed, page = as_text(found), write_report(sweep, found).read_text()
    words = " ".join(printed.split())
    for run in found.runs:
        if run.state != "finished":
            assert f"{run.name}: {run.state}, {run.reason}" in words
            assert run.name in page
        else:
            assert f'title="{run.name}"' in page
    assert "The card fell off the bus." in page


def test_states_and_scores_are_those_of_the_files(sweep):
    for run in read_runs(sweep):
        if run.state == "finished":
            assert run.score == ("test", json.loads((run.folder / "summary.json").read_text())["metric"]["test"])
