from analysis import cells
from analysis.load import read_runs
from analysis.tables import tables


def grid_of(out):
    (table,) = tables(read_runs(out))
    return next((grid for grid in cells.grids(table) if grid.title.startswith("Also measured on test")), None)


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
