import pytest

from analysis import cells, trials
from analysis.load import read_runs
from analysis.report import load, write_report
from analysis.tables import tables


def only(out):
    (table,) = tables(read_runs(out))
    return table


def grid_of(table):
    (grid,) = [grid for grid in cells.grids(table) if grid.header == trials.HEADER]
    return grid, {row[0]: dict(zip(grid.header, row, strict=True)) for row in grid.rows}


@pytest.fixture
def search(tmp_path, write_run):
    """LoRA: three rates of two seeds, the middle one best; AdaLoRA: two of one, the higher best; full: one rate."""
    for lr, best in ((4e-3, 0.75), (1e-3, 0.7), (2e-3, 0.8)):
        for seed in (0, 1):
            write_run(tmp_path, "lora", seed, config={"train.lr": lr}, metric__best=best + 0.01 * seed)
    for lr, best in ((1e-2, 0.7), (2e-2, 0.75)):
        write_run(tmp_path, "adalora", 0, config={"train.lr": lr}, metric__best=best, scale=4.0)
    write_run(tmp_path, "full", 0, metric__best=0.9, scale=None)
    return tmp_path


def test_every_method_s_trials_and_its_choice(search):
    _, rows = grid_of(only(search))
    assert rows == {
        "full": {
            "method": "full", "trials": "1", "seeds a trial": "1", "rates tried": "0.0001", "chosen": "0.0001",
            "best dev": "0.9000", "at the edge": "–", "α/r": "–",
        },
        "lora 8": {
            "method": "lora 8", "trials": "3", "seeds a trial": "2", "rates tried": "0.001, 0.002, 0.004",
            "chosen": "0.002", "best dev": "0.8050", "at the edge": "no", "α/r": "2",
        },
        "adalora 12 → 8": {
            "method": "adalora 12 → 8", "trials": "2", "seeds a trial": "1", "rates tried": "0.01, 0.02",
            "chosen": "0.02", "best dev": "0.7500", "at the edge": "yes", "α/r": "4",
        },
    }  # fmt: skip


def test_every_trial_leads_to_its_runs(search):
    grid, _ = grid_of(only(search))
    for row, runs in zip(grid.rows, grid.runs, strict=True):
        assert {run.summary["method"] for run in runs} == {row[0].split()[0]}
    assert {run.name for runs in grid.runs for run in runs} == {run.name for run in read_runs(search)}


def test_a_lower_metric_can_be_the_better_one(tmp_path, write_run):
    for lr, best in ((1e-3, 0.3), (2e-3, 0.1), (4e-3, 0.2)):
        write_run(tmp_path, "lora", 0, config={"train.lr": lr}, metric__best=best, metric__higher_is_better=False)
    (row,) = grid_of(only(tmp_path))[1].values()
    assert (row["chosen"], row["at the edge"]) == ("0.002", "no")


def test_a_method_that_ends_each_trial_at_another_rank_is_one_search(tmp_path, write_run):
    """SoRA has no budget: its final rank moves with the learning rate. What it was asked for stays."""
    for lr, best, kept in ((1e-3, 0.7, 7), (2e-3, 0.8, 6), (4e-3, 0.75, 5)):
        rank = {"initial": 8, "budget": None, "budget_triplets": None, "final": {"a.0.q": kept, "a.0.v": 8}}
        write_run(tmp_path, "sora", 0, config={"train.lr": lr}, metric__best=best, rank=rank)
    write_run(tmp_path, "lora", 0, 8, metric__best=0.1)
    write_run(tmp_path, "lora", 0, 16, metric__best=0.9)
    table = only(tmp_path)
    row = grid_of(table)[1]["sora 8 → 7"]
    assert (row["trials"], row["chosen"], row["at the edge"]) == ("3", "0.002", "no")
    assert [table.labels[row] for row in table.tuned] == ["lora 8", "lora 16", "sora 8 → 7, lr 0.002"]
    assert {table.labels[table.references[row]] for row in table.rows if row.method == "sora"} == {"lora 8"}


def test_unequal_numbers_of_seeds_are_shown(tmp_path, write_run):
    for lr, seeds in ((1e-3, 1), (2e-3, 3)):
        for seed in range(seeds):
            write_run(tmp_path, "lora", seed, config={"train.lr": lr})
    (row,) = grid_of(only(tmp_path))[1].values()
    assert row["seeds a trial"] == "1 to 3"


def test_no_section_without_a_search(quickstart):
    assert not any(grid.header == trials.HEADER for grid in cells.grids(only(quickstart)))


@pytest.mark.usefixtures("no_pictures")
def test_the_page_has_the_section_and_its_warnings(search):
    page = write_report(search, *load(search)).read_text()
    assert "<h3>Learning-rate trials</h3>" in page
    assert "Unequal numbers of learning-rate trials: 1 for full; 2 for adalora 12 → 8; 3 for lora 8." in page
    assert (
        "adalora 12 → 8: the best learning rate, 0.02, lies at the edge of its grid (0.01 to 0.02): widen it." in page
    )
    assert "The effective scale α/r is not that of LoRA: adalora 12 → 8, lr 0.02 4 against 2." in page
