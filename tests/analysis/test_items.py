import numpy as np
import pytest
from scipy.stats import binomtest

from analysis import items
from analysis.load import read_runs
from analysis.tables import tables
from analysis.verdicts import compare, family, judge

ROWS = 40


def write_predictions(folder, wrong, classes=True):
    label = np.arange(ROWS) % 2
    prediction = label.copy()
    prediction[list(wrong)] = 1 - prediction[list(wrong)]
    kind = np.int64 if classes else np.float32
    np.savez(folder / "predictions.npz", label=label.astype(kind), prediction=prediction.astype(kind))


def write_pairs(out, write_run, classes=True):
    """LoRA misses rows 0 to 7, AdaLoRA rows 0 and 1 and with seed 1 row 9, too."""
    for seed in range(3):
        wrong = {"lora": range(8), "adalora": [0, 1, *([9] if seed == 1 else [])]}
        for method, rows in wrong.items():
            score = 1 - len(rows) / ROWS
            write_predictions(write_run(out, method, seed, metric__test=score), rows, classes)
    return family(tables(read_runs(out))).verdicts[0]


def test_errors_over_seeds_and_rows_by_hand(tmp_path, write_run):
    verdicts = write_pairs(tmp_path, write_run)
    ((cells,), _) = items.rows(verdicts)
    shown = dict(zip(items.HEADER, cells, strict=True))
    by_seed = np.array([6, 5, 6]) / ROWS
    by_row = np.zeros(ROWS)
    by_row[2:8], by_row[9] = 1, -1 / 3
    assert (shown["seeds"], shown["test rows"]) == ("3", "40")
    assert float(shown["difference"]) == pytest.approx(by_seed.mean(), abs=5e-5)
    assert float(shown["error over seeds"]) == pytest.approx(by_seed.std(ddof=1) / np.sqrt(3), abs=5e-5)
    assert float(shown["error over rows"]) == pytest.approx(by_row.std(ddof=1) / np.sqrt(ROWS), abs=5e-5)


def test_the_error_over_both_is_that_of_new_seeds_and_new_rows(tmp_path, write_run):
    """Of the estimates' expectations: the variance of a mean over n seeds and m rows, drawn again and again."""
    n, m, parts = 8, 200, (0.02, 0.3, 0.2)
    draw, means, errors = np.random.default_rng(0), [], []
    for _ in range(400):
        of_seeds, of_rows, rest = (
            draw.normal(0, s, shape) for s, shape in zip(parts, ((n, 1), (1, m), (n, m)), strict=True)
        )
        gain = of_seeds + of_rows + rest
        means.append(gain.mean())
        errors.append(items.errors(gain))
    over_seeds, over_rows, both = np.mean(np.square(errors), axis=0)
    assert both == pytest.approx(np.var(means), rel=0.15)
    assert max(over_seeds, over_rows) < both < over_seeds + over_rows


def test_errors_are_those_of_the_pairs_that_were_judged(tmp_path, write_run):
    """A look judges the first seeds; the errors were those of all."""
    write_pairs(tmp_path, write_run)
    (table,) = tables(read_runs(tmp_path))
    adalora, lora = sorted(table.rows, key=lambda row: row.method)
    (verdict,) = judge([compare(table, adalora, lora, most=2)], None, True)
    assert [seed for seed, *_ in items.pairs(verdict)] == [0, 1]


def test_mcnemar_of_every_pair_of_runs(tmp_path, write_run):
    lines, runs = items.mcnemar(write_pairs(tmp_path, write_run))
    assert [line[1:4] for line in lines] == [["0", "6", "0"], ["1", "6", "1"], ["2", "6", "0"]]
    assert float(lines[1][4]) == pytest.approx(binomtest(6, 7).pvalue, abs=5e-4)
    assert [{run.seed for run in pair} for pair in runs] == [{0}, {1}, {2}]


def test_numbers_are_not_classes_and_damaged_files_are_left_out(tmp_path, write_run):
    assert items.mcnemar(write_pairs(tmp_path / "a", write_run, classes=False)) == ([], [])
    verdicts = write_pairs(tmp_path / "b", write_run)
    (verdicts[0].comparison.runs[0].folder / "predictions.npz").write_bytes(b"PK nothing")
    assert len(items.mcnemar(verdicts)[0]) == 2
