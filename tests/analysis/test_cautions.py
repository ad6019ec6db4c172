from analysis.cautions import cautions
from analysis.load import read_runs
from analysis.notes import notes
from analysis.tables import tables


def found(out):
    (table,) = tables(read_runs(out))
    assert notes(table)[: len(cautions(table))] == cautions(table)  # they head the notes
    return cautions(table)


def grid(out, write_run, method, rates, best, rank=8):
    for lr, value in zip(rates, best, strict=True):
        write_run(out, method, 0, rank, config={"train.lr": lr}, metric__best=value)


def test_a_best_rate_at_the_edge_is_warned_of_and_one_within_is_not(tmp_path, write_run):
    grid(tmp_path, write_run, "lora", (1e-3, 2e-3, 4e-3), (0.7, 0.8, 0.75))
    grid(tmp_path, write_run, "sora", (1e-3, 2e-3, 4e-3), (0.7, 0.75, 0.8))
    grid(tmp_path, write_run, "eva", (1e-3, 2e-3, 4e-3), (0.9, 0.75, 0.8))
    edge = [line for line in found(tmp_path) if "edge" in line]
    assert edge == [
        "eva 12 → 8: the best learning rate, 0.001, lies at the edge of its grid (0.001 to 0.004): widen it.",
        "sora 12 → 8: the best learning rate, 0.004, lies at the edge of its grid (0.001 to 0.004): widen it.",
    ]


def test_unequal_numbers_of_trials_are_counted(tmp_path, write_run):
    grid(tmp_path, write_run, "lora", (1e-3, 2e-3, 4e-3), (0.7, 0.8, 0.75))
    grid(tmp_path, write_run, "adalora", (1e-2,), (0.9,))
    lines = found(tmp_path)
    assert "Unequal numbers of learning-rate trials: 1 for adalora 12 → 8; 3 for lora 8." in lines
    assert not any("edge" in line for line in lines)  # one rate has no edge


def test_a_rank_that_was_searched_less_is_told_too(tmp_path, write_run):
    grid(tmp_path, write_run, "lora", (1e-3, 2e-3, 4e-3), (0.7, 0.8, 0.75))
    grid(tmp_path, write_run, "lora", (1e-3, 2e-3), (0.7, 0.8), rank=4)
    assert "Unequal numbers of learning-rate trials: 2 for lora 4; 3 for lora 8." in found(tmp_path)


def test_many_names_are_counted(tmp_path, write_run):
    grid(tmp_path, write_run, "lora", (1e-3, 2e-3, 4e-3), (0.7, 0.8, 0.75))
    for method in "abcdefg":
        grid(tmp_path, write_run, method, (1e-3,), (0.7,))
    assert "Unequal numbers of learning-rate trials: 1 for 7 configurations; 3 for lora 8." in found(tmp_path)
    assert "Budgets do not match LoRA's in 7 configurations: see the budget, counted four ways." in found(tmp_path)


def test_equal_searches_and_seeds_of_one_rate_raise_no_doubt(tmp_path, write_run):
    for seed in range(3):
        write_run(tmp_path / "a", "lora", seed)
    assert found(tmp_path / "a") == []
    for method in ("lora", "full"):
        grid(tmp_path / "b", write_run, method, (1e-3, 2e-3, 4e-3), (0.7, 0.8, 0.75))
    assert not any("learning" in line for line in found(tmp_path / "b"))


def test_a_different_scale_is_named(tmp_path, write_run):
    write_run(tmp_path, "lora", 0, 8)
    write_run(tmp_path, "sora", 0, 8, scale=4.0, rank=None)
    write_run(tmp_path, "eva", 0, 8, scale=2.0, rank=None)
    write_run(tmp_path, "full", 0, scale=None)
    assert "The effective scale α/r is not that of LoRA: sora 4 against 2." in found(tmp_path)


def test_scales_are_compared_without_lora_too(tmp_path, write_run):
    write_run(tmp_path, "eva", 0, 8, scale=2.0, rank=None)
    assert found(tmp_path) == []
    write_run(tmp_path, "sora", 0, 8, scale=4.0, rank=None)
    assert found(tmp_path) == ["The effective scale α/r is not the same for all: eva 2; sora 4."]


def test_budgets_that_do_not_match_are_listed_with_their_ratios(quickstart):
    (line,) = [line for line in found(quickstart) if line.startswith("Budgets")]
    assert "adalora 12 → 8 (initial triplets 1.50×, mean over training" in line
    assert "final" not in line  # that one matches
