import json

import pytest

from analysis.fairness import MEASUREMENTS, fairness_warnings, notes
from analysis.load import read_runs
from analysis.tables import tables


def warnings_of(out):
    (table,) = tables(read_runs(out))
    assert notes(table)[: len(fairness_warnings(table))] == fairness_warnings(table)  # they head the notes
    return fairness_warnings(table)


def grid(out, write_run, method, rates, best, rank=8):
    for lr, value in zip(rates, best, strict=True):
        write_run(out, method, 0, rank, config={"train.lr": lr}, metric__last=value)


def test_a_best_rate_at_the_edge_is_warned_of_and_one_within_is_not(tmp_path, write_run):
    grid(tmp_path, write_run, "lora", (1e-3, 2e-3, 4e-3), (0.7, 0.8, 0.75))
    grid(tmp_path, write_run, "sora", (1e-3, 2e-3, 4e-3), (0.7, 0.75, 0.8))
    grid(tmp_path, write_run, "eva", (1e-3, 2e-3, 4e-3), (0.9, 0.75, 0.8))
    edge = [line for line in warnings_of(tmp_path) if "edge" in line]
    assert edge == [
        "eva 12 → 8: the best learning rate, 0.001, lies at the edge of its grid (0.001 to 0.004): widen it.",
        "sora 12 → 8: the best learning rate, 0.004, lies at the edge of its grid (0.001 to 0.004): widen it.",
    ]


def test_unequal_numbers_of_trials_are_counted(tmp_path, write_run):
    grid(tmp_path, write_run, "lora", (1e-3, 2e-3, 4e-3), (0.7, 0.8, 0.75))
    grid(tmp_path, write_run, "adalora", (1e-2,), (0.9,))
    lines = warnings_of(tmp_path)
    assert "Unequal numbers of learning-rate trials: 1 for adalora 12 → 8; 3 for lora 8." in lines
    assert not any("edge" in line for line in lines)  # one rate has no edge


def test_a_rank_that_was_searched_less_is_told_too(tmp_path, write_run):
    grid(tmp_path, write_run, "lora", (1e-3, 2e-3, 4e-3), (0.7, 0.8, 0.75))
    grid(tmp_path, write_run, "lora", (1e-3, 2e-3), (0.7, 0.8), rank=4)
    assert "Unequal numbers of learning-rate trials: 2 for lora 4; 3 for lora 8." in warnings_of(tmp_path)


def test_many_names_are_counted(tmp_path, write_run):
    grid(tmp_path, write_run, "lora", (1e-3, 2e-3, 4e-3), (0.7, 0.8, 0.75))
    for method in "abcdefg":
        grid(tmp_path, write_run, method, (1e-3,), (0.7,))
    assert "Unequal numbers of learning-rate trials: 1 for 7 configurations; 3 for lora 8." in warnings_of(tmp_path)
    assert "Budgets do not match LoRA's in 7 configurations: see the budget, counted four ways." in warnings_of(
        tmp_path
    )


def test_equal_searches_and_seeds_of_one_rate_raise_no_doubt(tmp_path, write_run):
    for seed in range(3):
        write_run(tmp_path / "a", "lora", seed)
    assert warnings_of(tmp_path / "a") == []
    for method in ("lora", "full"):
        grid(tmp_path / "b", write_run, method, (1e-3, 2e-3, 4e-3), (0.7, 0.8, 0.75))
    assert not any("learning" in line for line in warnings_of(tmp_path / "b"))


def test_a_different_scale_is_named(tmp_path, write_run):
    write_run(tmp_path, "lora", 0, 8)
    write_run(tmp_path, "sora", 0, 8, scale=4.0, rank=None)
    write_run(tmp_path, "eva", 0, 8, scale=2.0, rank=None)
    write_run(tmp_path, "full", 0, scale=None)
    assert "The effective scale α/r differs from LoRA's: sora 4 against 2." in warnings_of(tmp_path)


def test_scales_are_compared_without_lora_too(tmp_path, write_run):
    write_run(tmp_path, "eva", 0, 8, scale=2.0, rank=None)
    assert warnings_of(tmp_path) == []
    write_run(tmp_path, "sora", 0, 8, scale=4.0, rank=None)
    assert warnings_of(tmp_path) == ["The effective scale α/r differs between rows: eva 2; sora 4."]


def test_rows_in_different_dtypes_are_warned_of(tmp_path, write_run):
    def dtype(base, trained="fp32", compute="fp32"):
        return {"base": base, "trained": trained, "compute": compute}

    write_run(tmp_path, "lora", 0, dtype=dtype("fp32"))
    write_run(tmp_path, "full", 0, scale=None, dtype=dtype(None))
    write_run(tmp_path, "qlora", 0, rank=None, dtype=dtype("nf4"))
    write_run(tmp_path, "head", 0, scale=None, rank=None)  # of a version that did not record it
    assert not [line for line in warnings_of(tmp_path) if "dtype" in line]
    write_run(tmp_path, "sora", 0, rank=None, dtype=dtype("bf16", compute="bf16"))
    assert [line for line in warnings_of(tmp_path) if "dtype" in line] == [
        "The rows compute in different dtypes: sora in bf16; full, qlora, lora 8 in fp32.",
        "The rows store the frozen base in different dtypes: sora in bf16; lora 8 in fp32.",
    ]


def test_budgets_that_do_not_match_are_listed_with_their_ratios(quickstart):
    (line,) = [line for line in warnings_of(quickstart) if line.startswith("Budgets")]
    assert "adalora 12 → 8 (initial triplets 1.50×, mean over training" in line
    assert "final" not in line  # that one matches


WHOLE = {
    "probe.json": {"rise": [0.1, 0.2, 0.3, 0.4], "scores": {"adalora": [1, 2, 3, 4]}},
    "forgetting.json": {"stsb": {"before": 0.8, "after": 0.7}},
    "similarity.json": {"with": {"other-s1": {"a": {"sides": [4, 4], "input": [[0.1]], "output": [[0.2]]}}}},
}


def unreadable(out):
    (table,) = tables(read_runs(out))
    return [note for note in notes(table) if "is omitted" in note]


@pytest.mark.parametrize("name", MEASUREMENTS)
@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"rise": [0.1, null], "modules": {"a": {}}, "stsb": 3, "with": {"b": 1}}']
)
def test_a_damaged_file_is_named_with_its_run(tmp_path, write_run, name, text):
    run = write_run(tmp_path, "lora", 3)
    (run / name).write_text(text)
    assert unreadable(tmp_path) == [f"{name} of lora 8, seed 3, cannot be read and is omitted: {run.name}/{name}."]


def test_whole_files_and_missing_ones_are_not(tmp_path, write_run):
    run = write_run(tmp_path, "lora", 0)
    write_run(tmp_path, "lora", 1)
    for name, content in WHOLE.items():
        (run / name).write_text(json.dumps(content))
    assert unreadable(tmp_path) == []
