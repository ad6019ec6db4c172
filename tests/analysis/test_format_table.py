import pytest
from scipy import stats as reference

from analysis import format_table
from analysis.fairness import notes
from analysis.load import read_runs
from analysis.report import LEGEND, load, write_report
from analysis.tables import tables

BEST, LAST = "accuracy, test, best checkpoint", "accuracy, test, last checkpoint"
GAINS = (0.020, 0.022, 0.018, 0.021, 0.019, 0.023)


def only(out):
    (table,) = tables(read_runs(out))
    return table


def shown(table):
    return [
        dict(zip(format_table.header(table), format_table.row_cells(table, row), strict=True)) for row in table.rows
    ]


@pytest.fixture
def both(tmp_path, write_run):
    """AdaLoRA beats LoRA with its best checkpoint, and loses to it with its last, which decides."""
    for seed, gain in enumerate(GAINS):
        level = 0.7 + 0.01 * seed
        write_run(tmp_path, "lora", seed, metric__test=level, metric__test_last=level - 0.01)
        write_run(tmp_path, "adalora", seed, metric__test=level + gain, metric__test_last=level - 0.01 - gain)
    return tmp_path


def test_both_stand_side_by_side_and_say_which_is_which(both):
    lora, adalora = shown(only(both))
    assert (lora[BEST][:6], lora[LAST][:6]) == ("0.7250", "0.7150")
    assert (adalora[BEST][:6], adalora[LAST][:6]) == ("0.7455", "0.6945")
    values = [0.7 + 0.01 * seed - 0.01 for seed in range(6)]
    half = reference.t.ppf(0.975, 5) * reference.sem(values)
    assert lora[LAST] == f"0.7150 ± {half:.4f}"


def test_the_last_has_the_verdict_and_the_best_is_exploratory(both):
    found = load(both)
    (last,) = format_table.verdict_table(found.tables[0], found.family, found.family.verdicts[0])
    best = next(grid for grid in format_table.further_tables(found.tables[0]) if "other checkpoint" in grid.title)
    assert last.title.startswith("Not declared beforehand: each method against its reference (minilm_l6, ")
    assert "95% intervals, all of the family hold together in 95%; margin ±0.005" in last.title
    assert dict(zip(last.header, last.rows[0], strict=True))["verdict"] == "lora better"
    assert "verdict" not in best.header
    assert [best.rows[0][1], last.rows[0][2]] == ["+0.0205", "-0.0205"]
    assert len(last.runs[0]) == len(best.runs[0]) == 12


def test_older_runs_keep_the_one_column(quickstart):
    table = only(quickstart)
    assert "accuracy, test" in format_table.header(table)
    assert not any("checkpoint" in name for name in format_table.header(table))
    assert not any("other checkpoint" in grid.title for grid in format_table.further_tables(table))


@pytest.mark.parametrize("value", [None, 0.61])
def test_a_seed_without_it_is_counted_and_told(tmp_path, write_run, value):
    for seed in (0, 1):
        write_run(tmp_path, "lora", seed, metric__test_last=0.6 if seed else value)
        write_run(tmp_path, "adalora", seed, metric__test_last=0.6)
    write_run(tmp_path, "full", 0)
    table = only(tmp_path)
    full, lora, _ = shown(table)
    assert full[BEST] == "–"
    assert full[LAST] == f"{table.rows[0].scores[0]:.4f} (no interval)"  # the best stands for it
    assert ("n = 1" in lora[BEST]) == (value is None)
    lacking = "full, lora 8" if value is None else "full"
    told = "Some seeds have no test value of the last checkpoint, so the best on dev stands for it: "
    assert f"{told}{lacking}." in notes(table)
    (other,) = [grid for grid in format_table.further_tables(table) if "other checkpoint" in grid.title]
    assert [(row[0], row[-1]) for row in other.rows] == [("adalora 12 → 8 − lora 8", "1" if value is None else "2")]


@pytest.mark.usefixtures("no_pictures")
def test_the_page_has_both_and_the_legend_tells_them_apart(both):
    page = write_report(both, load(both)).read_text()
    assert BEST in page
    assert LAST in page
    assert any("metric.test_last" in line for line in LEGEND)


def test_a_value_that_is_no_number_makes_the_run_corrupt(tmp_path, write_run):
    write_run(tmp_path, "lora", 0, metric__test_last="high")
    (run,) = read_runs(tmp_path)
    assert (run.state, run.reason) == ("corrupt", "summary.json: metric.test_last is not a number")


def grid_of(out):
    (table,) = tables(read_runs(out))
    return next(
        (grid for grid in format_table.further_tables(table) if grid.title.startswith("Other test metrics")), None
    )


def test_other_metrics_are_means_over_seeds_and_what_is_absent_says_why(tmp_path, write_run):
    absent = {"meteor": "nltk is not installed"}
    for seed, bleu in ((0, 20.0), (1, 30.0)):
        found = {"accuracy": 0.5, "bleu": bleu, "meteor": None}
        write_run(tmp_path, "lora", seed, test=found, not_computed=absent)
    write_run(tmp_path, "full", 0, test={"accuracy": 0.5, "bleu": 1.5, "meteor": 2.0}, not_computed={})
    write_run(tmp_path, "adalora", 0)
    grid = grid_of(tmp_path)
    assert grid.header == ["method", "bleu", "meteor"]
    rows = {row[0].split()[0]: row[1:] for row in grid.rows}
    assert rows["lora"][0].startswith("25.00 ± ")
    assert rows["lora"][1] == "not computed (nltk is not installed)"
    assert rows["full"] == ["1.5000 (no interval)", "2.0000 (no interval)"]
    assert rows["adalora"] == ["–", "–"]


def test_runs_that_recorded_no_more_get_no_such_table(quickstart):
    assert grid_of(quickstart) is None
