"""experiments/probe.py on a tiny run, and what the report makes of it."""

import json

import numpy as np
import pytest

from analysis.report import load, write_report
from experiments import probe
from tests.experiments.test_run import inside


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("probe")
    inside("method=adalora", "tiny=true", "rank=2", "seed=0", f"out={out}")
    (folder,) = out.glob("adalora-*")
    return folder


def call(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["probe.py", *map(str, arguments)])
    return probe.main()


def test_a_finished_run_is_probed_and_the_report_shows_it(run, monkeypatch, capsys):
    assert call(monkeypatch, run, "--rows", 8, "--passes", 2) == 0
    assert capsys.readouterr().out.strip() == str(run / "probe.json")
    found = json.loads((run / "probe.json").read_text())
    final = json.loads((run / "summary.json").read_text())["rank"]["final"]
    assert found["modules"] == final
    assert len(found["rise"]) == sum(final.values()) == 24
    assert np.isfinite(found["rise"]).all()
    assert found["rows"] == 8
    assert {len(values) for values in found["scores"].values()} == {24}
    page = write_report(run.parent, *load(run.parent)).read_text()
    assert "Do the scores mean anything?" in page
    assert "smoothed_sensitivity" in page


@pytest.mark.parametrize("arguments", [("absent",), ("absent", "--rows", "0")])
def test_what_cannot_be_probed_is_one_sentence(arguments, monkeypatch, capsys):
    assert call(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
