import json

import numpy as np
import pytest
from scipy import stats as reference

from analysis import cells, probe, report
from analysis.load import read_runs
from analysis.tables import tables

RISE = np.random.default_rng(0).exponential(1.0, size=80)
SCORES = {
    "good": RISE + np.random.default_rng(1).normal(0, 0.3, size=80),
    "blind": np.random.default_rng(2).normal(size=80),
    "constant": np.ones(80),
}


def write(quickstart, rise=RISE, scores=SCORES):
    folder = next(quickstart.glob("adalora-*-s0"))
    text = json.dumps({"rise": list(rise), "scores": {name: list(values) for name, values in scores.items()}})
    (folder / "probe.json").write_text(text)
    return next(run for run in read_runs(quickstart) if run.folder == folder)


def test_correlation_and_overlap_with_their_intervals(quickstart):
    good, blind, constant = probe.read(write(quickstart))
    assert [good.score, blind.score, constant.score] == ["good", "blind", "constant"]
    assert good.correlation == pytest.approx(reference.spearmanr(SCORES["good"], RISE).statistic)
    low, high = good.correlation_interval
    assert 0.7 < low < good.correlation < high < 1
    low, high = blind.correlation_interval
    assert low < 0 < high
    top = set(np.argsort(-RISE)[:20])
    assert good.size == good.correlation  # nothing fell
    assert good.overlap == len(top & set(np.argsort(-SCORES["good"])[:20])) / 20
    low, high = good.overlap_interval
    assert blind.chance == 0.25 < low < good.overlap < high <= 1
    assert (constant.correlation, constant.correlation_interval) == (None, None)
    assert constant.overlap == pytest.approx(0.25)


def test_the_size_of_the_rise_has_a_correlation_of_its_own(quickstart):
    signed = RISE * np.random.default_rng(5).choice([-1.0, 1.0], size=80)
    good, *_ = [worth for worth in probe.read(write(quickstart, rise=signed)) if worth.score == "good"]
    assert good.correlation == pytest.approx(reference.spearmanr(SCORES["good"], signed).statistic)
    assert good.size == pytest.approx(reference.spearmanr(SCORES["good"], RISE).statistic)
    low, high = good.size_interval
    assert good.correlation < 0.7 < low < good.size < high


def test_the_rise_of_half_of_the_rows_against_the_other_half_stands_first(quickstart):
    run = write(quickstart)
    found = json.loads((run.folder / "probe.json").read_text())
    halves = [RISE + np.random.default_rng(s).normal(0, 1, size=80) for s in (3, 4)]
    (run.folder / "probe.json").write_text(json.dumps({**found, "halves": [list(half) for half in halves]}))
    first, *rest = probe.read(run)
    assert first.score == probe.HALVES
    assert first.correlation == pytest.approx(reference.spearmanr(*halves).statistic)
    assert first.size == pytest.approx(reference.spearmanr(*np.abs(halves)).statistic)
    assert [worth.score for worth in rest] == ["good", "blind", "constant"]
    (run.folder / "probe.json").write_text(json.dumps({**found, "halves": None}))
    assert [worth.score for worth in probe.read(run)] == ["good", "blind", "constant"]


@pytest.mark.usefixtures("no_pictures")
def test_the_report_has_a_line_for_every_score_and_run(quickstart):
    write(quickstart)
    (table,) = tables(read_runs(quickstart))
    (grid,) = [grid for grid in cells.grids(table) if grid.header == probe.HEADER]
    assert [row[:2] for row in grid.rows] == [["adalora 12 → 8, seed 0", name] for name in SCORES]
    runs, found = report.load(quickstart)
    assert grid.title in report.write_report(quickstart, runs, found).read_text()


@pytest.mark.parametrize(
    "text", [None, "{", "[]", '{"rise": [1, null], "scores": {}}', '{"rise": [1, 2], "scores": []}']
)
def test_without_a_file_to_read_there_is_no_line(quickstart, text):
    run = write(quickstart)
    (run.folder / "probe.json").unlink()
    if text is not None:
        (run.folder / "probe.json").write_text(text)
    assert probe.read(run) == []
