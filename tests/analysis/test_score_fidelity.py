import json

import numpy as np
import pytest
from scipy import stats as reference

from analysis import format_table, report, score_fidelity
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
    good, blind, constant = score_fidelity.fidelities(write(quickstart))
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
    good, *_ = [worth for worth in score_fidelity.fidelities(write(quickstart, rise=signed)) if worth.score == "good"]
    assert good.correlation == pytest.approx(reference.spearmanr(SCORES["good"], signed).statistic)
    assert good.size == pytest.approx(reference.spearmanr(SCORES["good"], RISE).statistic)
    low, high = good.size_interval
    assert good.correlation < 0.7 < low < good.size < high


def test_the_rise_of_half_of_the_rows_against_the_other_half_stands_first(quickstart):
    run = write(quickstart)
    found = json.loads((run.folder / "probe.json").read_text())
    halves = [RISE + np.random.default_rng(s).normal(0, 1, size=80) for s in (3, 4)]
    (run.folder / "probe.json").write_text(json.dumps({**found, "halves": [list(half) for half in halves]}))
    first, *rest = score_fidelity.fidelities(run)
    assert first.score == score_fidelity.HALVES
    assert first.correlation == pytest.approx(reference.spearmanr(*halves).statistic)
    assert first.size == pytest.approx(reference.spearmanr(*np.abs(halves)).statistic)
    assert [worth.score for worth in rest] == ["good", "blind", "constant"]
    (run.folder / "probe.json").write_text(json.dumps({**found, "halves": None}))
    assert [worth.score for worth in score_fidelity.fidelities(run)] == ["good", "blind", "constant"]


@pytest.mark.usefixtures("no_pictures")
def test_the_report_has_a_line_for_every_score_and_run(quickstart):
    write(quickstart)
    (table,) = tables(read_runs(quickstart))
    (grid,) = [grid for grid in format_table.further_tables(table) if grid.header == score_fidelity.HEADER]
    assert [row[:2] for row in grid.rows] == [["adalora 12 → 8, seed 0", name] for name in SCORES]
    found = report.load(quickstart)
    assert grid.title in report.write_report(quickstart, found).read_text()


@pytest.mark.parametrize(
    "text", [None, "{", "[]", '{"rise": [1, null], "scores": {}}', '{"rise": [1, 2], "scores": []}']
)
def test_without_a_file_to_read_there_is_no_line(quickstart, text):
    run = write(quickstart)
    (run.folder / "probe.json").unlink()
    if text is not None:
        (run.folder / "probe.json").write_text(text)
    assert score_fidelity.fidelities(run) == []


SEEDS = range(8)
OWN = {"score": {"_target_": "adarank.scores.adalora"}}


def probed(seed):
    """A rise, a score that follows it closely, one that follows it loosely, one that is blind, one that is constant."""
    generator = np.random.default_rng(seed)
    rise = generator.exponential(1.0, size=60)
    near, far = (rise + generator.normal(0, noise, size=60) for noise in (0.1, 1.5))
    scores = {"adalora": far, "oracle": near, "random": generator.normal(size=60), "constant": np.ones(60)}
    return {"rise": rise.tolist(), "scores": {name: values.tolist() for name, values in scores.items()}}


@pytest.fixture
def table(tmp_path, write_run):
    for seed in SEEDS:
        folder = write_run(tmp_path, "adalora", seed, config=OWN)
        (folder / "probe.json").write_text(json.dumps(probed(seed)))
    (found,) = tables(read_runs(tmp_path))
    return found


def test_a_score_in_a_configuration_is_the_mean_over_its_runs(table):
    rows, runs = score_fidelity.over_seeds(table)
    assert [row[1] for row in rows] == ["oracle", "adalora", "random"], "best first; a constant orders nothing"
    assert [len(of_row) for of_row in runs] == [8, 8, 8]
    for row in rows:
        found = [reference.spearmanr(p["scores"][row[1]], p["rise"]).statistic for p in map(probed, SEEDS)]
        half = reference.t.ppf(0.975, 7) * np.std(found, ddof=1) / np.sqrt(8)
        assert row[2] == f"{np.mean(found):.4f} ± {half:.4f}"
        assert row[5:] == ["0.2500", "8"]
    overlaps = [len(top(p["rise"]) & top(p["scores"]["oracle"])) / 15 for p in map(probed, SEEDS)]
    assert rows[0][4].startswith(f"{np.mean(overlaps):.4f} ± ")


def top(values):
    return set(np.argsort(-np.array(values))[:15].tolist())


def test_every_score_is_compared_with_the_one_that_pruned(table):
    oracle, random = score_fidelity.against_pruning_score(table)
    assert (oracle.against, oracle.differences.size) == ("adalora", 8)
    assert oracle.label.endswith(": oracle")
    assert (oracle.differences > 0).all()
    assert (random.differences < 0).all()
    assert [run.seed for run in oracle.runs] == list(SEEDS)


def test_a_score_can_foresee_the_size_of_a_change_and_not_its_sign(tmp_path, write_run):
    sizes = {}
    for seed in SEEDS:
        generator = np.random.default_rng(seed)
        size, sign = generator.exponential(1.0, size=60), generator.choice([-1.0, 1.0], size=60)
        near = size + generator.normal(0, 0.1, size=60)
        scores = {"adalora": generator.normal(size=60).tolist(), "sized": near.tolist()}
        sizes[seed] = reference.spearmanr(near, size).statistic
        folder = write_run(tmp_path, "adalora", seed, config=OWN)
        (folder / "probe.json").write_text(json.dumps({"rise": (size * sign).tolist(), "scores": scores}))
    (table,) = tables(read_runs(tmp_path))
    rows, _ = score_fidelity.over_seeds(table)
    sized = next(row for row in rows if row[1] == "sized")
    assert sized[3].startswith(f"{np.mean(list(sizes.values())):.4f} ± ")
    assert abs(float(sized[2].partition(" ")[0])) < 0.3
    (of_rise,), (of_size,) = (
        score_fidelity.against_pruning_score(table),
        score_fidelity.against_pruning_score(table, "size"),
    )
    assert abs(of_rise.differences.mean()) < 0.3
    assert (of_size.differences > 0.5).all()


def test_one_probed_run_makes_no_seeds(table):
    for seed in SEEDS[1:]:
        next(run for run in table.rows[0].runs if run.seed == seed).folder.joinpath("probe.json").unlink()
    assert score_fidelity.over_seeds(table) == ([], [])
    assert score_fidelity.against_pruning_score(table) == []


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_both_stand_in_the_report(table):
    out = table.rows[0].runs[0].folder.parent
    titles = [grid.title for grid in format_table.further_tables(table)]
    for title in (score_fidelity.SEEDS_TITLE, *score_fidelity.AGAINST.values()):
        assert any(one.startswith(title) for one in titles)
    page = report.write_report(out, report.load(out)).read_text()
    assert score_fidelity.SEEDS_TITLE in page
    assert score_fidelity.AGAINST["size"] in page
