import json

import numpy as np
import pytest
from scipy import stats as reference

from analysis import cells, foresight, report
from analysis.load import read_runs
from analysis.tables import tables

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
    rows, runs = foresight.rows(table)
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


def test_every_score_is_judged_against_the_one_that_pruned(table):
    oracle, random = foresight.verdicts(table)
    assert (oracle.comparison.against, oracle.text, oracle.pairs) == ("adalora", "oracle better", 8)
    assert oracle.comparison.label.endswith(": oracle")
    assert (random.text, random.holm) == ("adalora better", pytest.approx(2 / 2**7))
    assert [run.seed for run in oracle.comparison.runs] == list(SEEDS)
    assert oracle.equal is None, "half a point means nothing here"


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
    rows, _ = foresight.rows(table)
    sized = next(row for row in rows if row[1] == "sized")
    assert sized[3].startswith(f"{np.mean(list(sizes.values())):.4f} ± ")
    assert abs(float(sized[2].partition(" ")[0])) < 0.3
    (of_rise,), (of_size,) = foresight.verdicts(table), foresight.verdicts(table, "size")
    assert of_rise.text == "cannot be decided with 8 pairs"
    assert of_size.text == "sized better"


def test_one_probed_run_makes_no_seeds(table):
    for seed in SEEDS[1:]:
        next(run for run in table.rows[0].runs if run.seed == seed).folder.joinpath("probe.json").unlink()
    assert foresight.rows(table) == ([], [])
    assert foresight.verdicts(table) == []


@pytest.mark.usefixtures("no_pictures")
def test_both_stand_in_the_report(table):
    out = table.rows[0].runs[0].folder.parent
    titles = [grid.title for grid in cells.grids(table)]
    assert {foresight.TITLE, *foresight.AGAINST.values()} <= set(titles)
    page = report.write_report(out, *report.load(out)).read_text()
    assert foresight.TITLE in page
    assert foresight.AGAINST["size"] in page
