import html

import pytest

from analysis import format_table
from analysis.fairness import notes
from analysis.load import read_runs
from analysis.report import load, table_text, write_report
from analysis.tables import relative_time, tables
from tests.analysis.conftest import map_settings


def only(out):
    (table,) = tables(read_runs(out))
    return table


def column(table, name):
    place = format_table.header(table).index(name)
    return [format_table.row_cells(table, row)[place] for row in table.rows]


def test_the_quickstart_table(quickstart):
    table = only(quickstart)
    assert table.title == "minilm_l6, rotten_tomatoes, targets all"
    assert column(table, "method") == ["full", "lora", "adalora"]
    assert column(table, "train.lr") == ["0.0001", "0.002", "0.01"]
    assert column(table, "mean rank") == ["–", "8", "12 → 8"]
    assert column(table, "triplets") == ["–", "288", "288"]
    assert column(table, "trainable") == ["22,713,986", "332,834", "498,866"]
    assert column(table, "n") == ["2", "2", "2"]
    assert column(table, "÷ LoRA") == ["1.40×", "1.00×", "1.24×"]
    assert column(table, "peak, MiB") == ["812"] * 3


def test_kept_is_what_a_finished_model_needs(tmp_path, write_run):
    write_run(tmp_path, "adalora", 0, parameters={"total": 9000, "trainable": 1500, "adapter": 1000, "kept": 700})
    write_run(tmp_path, "full", 0, parameters={"total": 9000, "trainable": 9000, "adapter": 0, "kept": 0})
    assert column(only(tmp_path), "kept") == ["9,000", "1,200"]


def test_seeds_are_averaged_with_a_t_interval(tmp_path, write_run):
    for seed, score in enumerate((0.70, 0.72, 0.77)):
        write_run(tmp_path, "lora", seed, metric__test=score, metric__best=score + 0.1, time__step_ms=100.0 + seed**3)
    (row,) = only(tmp_path).rows
    assert row.mean == pytest.approx(0.73)
    assert row.half_width == pytest.approx(4.302653 * 0.0360555 / 3**0.5, rel=1e-5)
    assert row.best == pytest.approx(0.83)
    assert row.step_ms == 101.0
    assert row.scores == {0: 0.70, 1: 0.72, 2: 0.77}


def test_one_seed_has_no_interval(tmp_path, write_run):
    write_run(tmp_path, "lora", 0, metric__test=0.7)
    assert column(only(tmp_path), "accuracy, test") == ["0.7000 (no interval)"]


def test_missing_numbers_are_blank_never_nan(tmp_path, write_run):
    write_run(tmp_path, "lora", 0, parameters=None, time={"step_ms": float("nan")}, memory=None)
    table = only(tmp_path)
    printed = table_text(load(tmp_path), 0)
    assert "nan" not in printed.lower()
    assert "None" not in printed
    for name in ("trainable", "kept", "step, ms", "÷ LoRA", "peak, MiB"):
        assert column(table, name) == ["–"]


def test_different_metrics_and_splits_never_share_a_table(tmp_path, write_run):
    write_run(tmp_path, "lora", 0)
    write_run(tmp_path, "lora", 1, metric__name="matthews", metric__test=-0.2)
    write_run(tmp_path, "lora", 2, metric__test=None)
    found = tables(read_runs(tmp_path))
    assert [(table.metric, table.split, len(table.rows[0].scores)) for table in found] == [
        ("accuracy", "dev", 1),
        ("accuracy", "test", 1),
        ("matthews", "test", 1),
    ]
    assert "last dev" not in format_table.header(found[0])  # there it is the metric itself
    assert format_table.header(found[1])[-5:-3] == ["last dev", "best dev"]
    assert format_table.header(found[0])[-6] == "accuracy, last dev"
    assert column(found[2], "matthews, test") == ["-0.2000 (no interval)"]


def test_a_renamed_folder_is_not_averaged_with_another_method(tmp_path, write_run):
    write_run(tmp_path / "a", "lora", 0).rename(tmp_path / "a" / "mine-s0")
    write_run(tmp_path / "b", "adalora", 1).rename(tmp_path / "b" / "mine-s1")
    assert [row.method for row in only(tmp_path).rows] == ["lora", "adalora"]


def test_a_method_without_targets_stands_in_every_table(tmp_path, write_run):
    write_run(tmp_path, "full", 0, targets="qv")
    for targets in ("qv", "all"):
        write_run(tmp_path, "lora", 0, targets=targets, config={"targets": targets})
    found = tables(read_runs(tmp_path))
    assert [(table.targets, [row.method for row in table.rows]) for table in found] == [
        ("all", ["full", "lora"]),
        ("qv", ["full", "lora"]),
    ]


def test_settings_are_shown_where_they_vary(tmp_path, write_run):
    for clip in (0.5, 1.0):
        write_run(tmp_path, "lora", 0, config={"train.max_grad_norm": clip, "penalty.gamma": 0.0, "out": f"runs{clip}"})
        write_run(
            tmp_path,
            "adalora",
            0,
            config={"train.max_grad_norm": clip, "penalty.gamma": 0.1, "schedule.t_i": clip / 10},
        )
    table = only(tmp_path)
    # gamma differs only between the methods, out has no effect; the learning rate is a term of the comparison
    assert table.settings == ("train.lr", "schedule.t_i", "train.max_grad_norm")
    assert sorted(table.labels.values()) == [
        "adalora 12 → 8, t_i 0.05, max_grad_norm 0.5",
        "adalora 12 → 8, t_i 0.1, max_grad_norm 1",
        "lora 8, max_grad_norm 0.5",
        "lora 8, max_grad_norm 1",
    ]


def test_the_path_of_a_rank_map_is_not_a_setting_but_its_shuffle_is(tmp_path, write_run):
    for seed in (0, 1):
        write_run(tmp_path, "lora", seed, digest="aaaaaaaa", config=map_settings(f"runs/{seed}"))
    write_run(tmp_path, "lora", 0, digest="bbbbbbbb", config=map_settings("runs/2", "all"))
    table = only(tmp_path)
    assert table.settings == ("ranks_from",)
    assert sorted(table.labels.values()) == ["lora 8, map shuffled (all)", "lora 8, retrained map"]


def test_rank_maps_are_named_as_such_and_not_by_the_pieces_they_lack(tmp_path, write_run):
    top = {"allocator._target_": "a.global_top", "allocator.min_rank": 0, "ranks_from": None, "ranks_shuffle": "none"}
    top |= {"schedule._target_": "s.cubic", "schedule.t_i": 10, "score._target_": "c.adalora"}
    write_run(tmp_path, "adalora", 0, config=top)
    for shuffle in ("none", "all", "within_family", "reversed"):
        write_run(tmp_path, "adalora", 0, config=map_settings("runs/adalora-0123456789-s0", shuffle))
    table = only(tmp_path)
    assert table.settings == ("ranks_from",)
    assert sorted(table.labels.values()) == [
        "adalora 12 → 8",
        "adalora 12 → 8, map shuffled (all)",
        "adalora 12 → 8, map shuffled (within_family)",
        "adalora 12 → 8, retrained map",
        "adalora 12 → 8, reversed map",
    ]
    assert sorted(column(table, "ranks_from")) == [
        "map shuffled (all)",
        "map shuffled (within_family)",
        "retrained map",
        "reversed map",
        "–",
    ]
    assert set(table.kinds.values()) == {label.replace(" 12 → 8", "") for label in table.labels.values()}


def test_a_table_of_one_rank_map_says_that_it_is_one(tmp_path, write_run):
    write_run(tmp_path, "adalora", 0, config=map_settings("runs/adalora-0123456789-s0"))
    assert list(only(tmp_path).labels.values()) == ["adalora 12 → 8, retrained map"]


def test_an_absent_schedule_is_named_where_the_allocator_does_not_imply_it(tmp_path, write_run):
    for schedule in ({"schedule._target_": "s.cubic"}, {"schedule": None}):
        write_run(tmp_path, "adalora", 0, config={"allocator._target_": "a.global_top", **schedule})
    write_run(tmp_path, "adalora", 0, config={"allocator._target_": "a.uniform", "schedule": None})
    assert sorted(label.partition(", ")[2] for label in only(tmp_path).labels.values()) == [
        "allocator global_top, schedule cubic",
        "allocator global_top, schedule null",
        "allocator uniform, schedule null",
    ]


def test_another_piece_is_named_without_the_settings_that_only_the_first_has(tmp_path, write_run):
    top = {"allocator._target_": "a.global_top", "allocator.min_rank": 0}
    top |= {"schedule._target_": "s.cubic", "schedule.t_i": 10}
    write_run(tmp_path, "adalora", 0, config=top)
    for low in (1, 2):
        config = {"allocator._target_": "a.fixed", "allocator.low": low, "schedule": None}
        write_run(tmp_path, "adalora", 0, config=config)
    table = only(tmp_path)
    assert table.settings == ("allocator", "allocator.low", "schedule")
    assert sorted(label.partition(", ")[2] for label in table.labels.values()) == [
        "allocator fixed, low 1",
        "allocator fixed, low 2",
        "allocator global_top",
    ]


def test_rows_are_in_order_of_rank_and_labels_are_unique(tmp_path, write_quickstart):
    table = only(write_quickstart(tmp_path / "runs", seeds=1, ranks=(16, 4, 8)))
    expected = ["full", "lora 4", "lora 8", "lora 16", "adalora 6 → 4", "adalora 12 → 8", "adalora 24 → 16"]
    assert [table.labels[row] for row in table.rows] == expected


def test_rows_alike_in_everything_shown_are_told_apart_by_their_hash(tmp_path, write_run):
    for digest in ("aaaaaaaa", "bbbbbbbb"):
        write_run(tmp_path, "lora", 0, digest=digest)
    assert sorted(only(tmp_path).labels.values()) == ["lora 8 (lora-aaaaaaaa)", "lora 8 (lora-bbbbbbbb)"]


def test_the_reference_has_the_same_rank_and_is_the_best_on_dev(tmp_path, write_run):
    for rank, lr, best, ms in ((4, 1e-3, 0.9, 10.0), (8, 1e-3, 0.7, 20.0), (8, 5e-3, 0.8, 40.0)):
        write_run(tmp_path, "lora", 0, rank, config={"train.lr": lr}, metric__last=best, time__step_ms=ms)
    write_run(tmp_path, "adalora", 0, 8, time__step_ms=60.0)
    table = only(tmp_path)
    (row,) = [row for row in table.rows if row.method == "adalora"]
    assert table.labels[table.baselines[row]] == "lora 8, lr 0.005"
    assert relative_time(row, table.baselines[row]) == pytest.approx(1.5)


def test_without_lora_at_its_rank_a_method_is_compared_with_the_nearest(tmp_path, write_run):
    """It was compared with the LoRA row that was best on dev."""
    for rank, last in ((2, 0.7), (16, 0.9)):
        write_run(tmp_path, "lora", 0, rank, metric__last=last)
    write_run(tmp_path, "adalora", 0, 4)
    table = only(tmp_path)
    (row,) = [row for row in table.rows if row.method == "adalora"]
    assert table.labels[table.baselines[row]] == "lora 2"


def test_a_method_without_ranks_is_compared_with_the_highest_rank_whichever_scored_best(tmp_path, write_run):
    for rank, last in ((4, 0.9), (16, 0.7), (8, 0.8)):
        write_run(tmp_path, "lora", 0, rank, metric__last=last)
    write_run(tmp_path, "full", 0)
    table = only(tmp_path)
    (row,) = [row for row in table.rows if row.method == "full"]
    assert table.labels[table.baselines[row]] == "lora 16"


def test_times_on_different_devices_are_not_compared(tmp_path, write_run):
    write_run(tmp_path, "lora", 0)
    write_run(tmp_path, "adalora", 0, device="cuda")
    table = only(tmp_path)
    assert column(table, "÷ LoRA") == ["1.00×", "–"]
    assert any("different or unknown devices" in note for note in notes(table))
    assert "Device: cpu; cuda." in notes(table)


def test_times_on_an_unknown_device_are_not_compared(tmp_path, write_run):
    for method in ("lora", "adalora"):
        write_run(tmp_path, method, 0, device=None)
    table = only(tmp_path)
    assert column(table, "÷ LoRA") == ["–", "–"]
    assert "Device: unknown." in notes(table)


def test_without_lora_the_table_says_so(tmp_path, write_run):
    write_run(tmp_path, "sora", 0)
    table = only(tmp_path)
    assert column(table, "÷ LoRA") == ["–"]
    assert any("no LoRA run" in note for note in notes(table))
    assert [grid.title for grid in format_table.further_tables(table)] == ["The budget, counted four ways"]


def test_notes_tell_a_missed_budget_other_recipes_and_a_missing_config(tmp_path, write_run):
    write_run(tmp_path, "adalora", 0, rank__budget_triplets=280)
    (write_run(tmp_path, "lora", 0, recipe=2) / "config.yaml").unlink()
    found = notes(only(tmp_path))
    assert "adalora 12 → 8 kept 288 triplets; its budget was 280." in found
    assert "The runs come from different recipes of the code: 1, 2." in found
    assert any("config.yaml" in note for note in found)


def test_many_rows_leave_the_best_of_each_method_to_the_figures(tmp_path, write_quickstart):
    table = only(write_quickstart(tmp_path / "runs", seeds=1, ranks=(2, 4, 8, 16)))
    assert len(table.rows) == 9
    assert [row.method for row in table.shown] == ["full", "lora", "adalora"]
    for row in table.shown:
        assert row.dev == max(other.dev for other in table.rows if other.method == row.method)


def test_more_methods_than_a_figure_holds_leave_lora_and_the_best(tmp_path, write_run):
    for place, method in enumerate("abcdefghij"):
        write_run(tmp_path, method, 0, metric__last=0.5 + place / 100)
    write_run(tmp_path, "lora", 0, metric__last=0.1)
    assert [row.method for row in only(tmp_path).shown] == ["lora", *"defghij"]


def test_adaptive_means_that_ranks_moved(quickstart):
    assert [row.adaptive for row in only(quickstart).rows] == [False, False, True]


def test_the_text_is_aligned(quickstart):
    lines = table_text(load(quickstart), 0, 400).splitlines()
    assert len({len(line) for line in lines[2:7]}) == 1


def test_rows_without_a_config_are_measured_against_lora_of_the_rank_that_came_out(tmp_path, write_run):
    for rank in (8, 12):
        (write_run(tmp_path, "lora", 0, rank, metric__last=0.5 + rank / 100) / "config.yaml").unlink()
    (write_run(tmp_path, "adalora", 0, 8) / "config.yaml").unlink()  # it starts at 12
    table = only(tmp_path)
    (row,) = [row for row in table.rows if row.method == "adalora"]
    assert table.labels[table.baselines[row]] == "lora 8"


def grid_of(table):
    (grid,) = [grid for grid in format_table.further_tables(table) if grid.header == format_table.TRIALS_HEADER]
    return grid, {row[0]: dict(zip(grid.header, row, strict=True)) for row in grid.rows}


@pytest.fixture
def search(tmp_path, write_run):
    """LoRA: three rates of two seeds, the middle one best; AdaLoRA: two of one, the higher best; full: one rate."""
    for lr, best in ((4e-3, 0.75), (1e-3, 0.7), (2e-3, 0.8)):
        for seed in (0, 1):
            write_run(tmp_path, "lora", seed, config={"train.lr": lr}, metric__last=best + 0.01 * seed)
    for lr, best in ((1e-2, 0.7), (2e-2, 0.75)):
        write_run(tmp_path, "adalora", 0, config={"train.lr": lr}, metric__last=best, scale=4.0)
    write_run(tmp_path, "full", 0, metric__last=0.9, scale=None)
    return tmp_path


def test_two_arms_of_a_study_are_no_trials_of_one_search(tmp_path, write_run):
    for arm, lr in (("adalora@8", 1e-2), ("adalora_slow@8", 1e-3)):
        write_run(tmp_path, "adalora", 0, config={"train.lr": lr}, arm=arm)
    table = only(tmp_path)
    assert table.tuned == table.rows
    assert [table.trials(row) for row in table.rows] == [(row,) for row in table.rows]


def test_every_method_s_trials_and_its_choice(search):
    _, rows = grid_of(only(search))
    assert rows == {
        "full": {
            "method": "full", "trials": "1", "seeds per trial": "1", "rates tried": "0.0001", "used": "0.0001",
            "dev": "0.9000", "at the edge": "–", "α/r": "–", "within a point of the best": "–", "mean over log rate": "–",
        },
        "lora 8": {
            "method": "lora 8", "trials": "3", "seeds per trial": "2", "rates tried": "0.001, 0.002, 0.004",
            "used": "0.002", "dev": "0.8050", "at the edge": "no", "α/r": "2",
            "within a point of the best": "0.002 to 0.002 (1×)", "mean over log rate": "0.7675",
        },
        "adalora 12 → 8": {
            "method": "adalora 12 → 8", "trials": "2", "seeds per trial": "1", "rates tried": "0.01, 0.02",
            "used": "0.02", "dev": "0.7500", "at the edge": "yes", "α/r": "4",
            "within a point of the best": "0.02 to 0.02 (1×)", "mean over log rate": "0.7250",
        },
    }  # fmt: skip


def test_every_trial_leads_to_its_runs(search):
    grid, _ = grid_of(only(search))
    for row, runs in zip(grid.rows, grid.runs, strict=True):
        assert {run.summary["method"] for run in runs} == {row[0].split()[0]}
    assert {run.name for runs in grid.runs for run in runs} == {run.name for run in read_runs(search)}


def test_a_lower_metric_can_be_the_better_one(tmp_path, write_run):
    for lr, best in ((1e-3, 0.3), (2e-3, 0.1), (4e-3, 0.2)):
        write_run(tmp_path, "lora", 0, config={"train.lr": lr}, metric__last=best, metric__higher_is_better=False)
    (row,) = grid_of(only(tmp_path))[1].values()
    assert (row["used"], row["at the edge"]) == ("0.002", "no")


def test_a_method_that_ends_each_trial_at_another_rank_is_one_search(tmp_path, write_run):
    """SoRA has no budget: its final rank moves with the learning rate. What it was asked for stays."""
    for lr, best, kept in ((1e-3, 0.7, 7), (2e-3, 0.8, 6), (4e-3, 0.75, 5)):
        rank = {"initial": 8, "budget": None, "budget_triplets": None, "final": {"a.0.q": kept, "a.0.v": 8}}
        write_run(tmp_path, "sora", 0, config={"train.lr": lr}, metric__last=best, rank=rank)
    write_run(tmp_path, "lora", 0, 8, metric__last=0.1)
    write_run(tmp_path, "lora", 0, 16, metric__last=0.9)
    table = only(tmp_path)
    row = grid_of(table)[1]["sora 8 → 7"]
    assert (row["trials"], row["used"], row["at the edge"]) == ("3", "0.002", "no")
    assert [table.labels[row] for row in table.tuned] == ["lora 8", "lora 16", "sora 8 → 7, lr 0.002"]
    assert {table.labels[table.baselines[row]] for row in table.rows if row.method == "sora"} == {"lora 8"}


def test_unequal_numbers_of_seeds_are_shown(tmp_path, write_run):
    for lr, seeds in ((1e-3, 1), (2e-3, 3)):
        for seed in range(seeds):
            write_run(tmp_path, "lora", seed, config={"train.lr": lr})
    (row,) = grid_of(only(tmp_path))[1].values()
    assert row["seeds per trial"] == "1 to 3"


def test_no_section_without_a_search(quickstart):
    assert not any(grid.header == format_table.TRIALS_HEADER for grid in format_table.further_tables(only(quickstart)))


@pytest.mark.usefixtures("no_pictures")
def test_the_page_has_the_section_and_its_warnings(search):
    page = html.unescape(write_report(search, load(search)).read_text())
    assert "Learning-rate trials" in page
    assert "Unequal numbers of learning-rate trials: 1 for full; 2 for adalora 12 → 8; 3 for lora 8." in page
    assert (
        "adalora 12 → 8: the best learning rate, 0.02, lies at the edge of its grid (0.01 to 0.02): widen it." in page
    )
    assert "The effective scale α/r differs from LoRA's: adalora 12 → 8, lr 0.02 4 against 2." in page
