"""Every prefix rank of one run, beside runs tuned for each rank."""

import json

import pytest

from analysis import fairness, format_table, formats, prefixes, stats
from analysis.load import read_runs
from analysis.plots import prefixes as plot
from analysis.tables import tables
from tests.analysis.test_curves import RANKS, write_budgets


def write_prefixes(folder, levels, ranks=RANKS, metric="accuracy", svd=None):
    content = {
        "metric": metric,
        "higher_is_better": True,
        "ranks": list(ranks),
        "dev": [0.1] * len(ranks),
        "test": levels,
        "svd": svd and {"dev": [0.2] * len(ranks), "test": svd},
    }
    (folder / "prefixes.json").write_text(json.dumps(content))


@pytest.fixture
def out(tmp_path, write_run):
    """Tuned LoRA gains a point with every doubling; one Matryoshka run lies half a point below at every rank."""
    write_budgets(tmp_path, write_run)
    for seed in range(4):
        folder = write_run(tmp_path, "matryoshka", seed, 8)
        levels = [0.695 + 0.01 * place + 0.001 * seed + 0.0004 * (seed % 2) for place in range(4)]
        write_prefixes(folder, levels, svd=[0.5 + level for level in levels])
    return tmp_path


def test_the_area_from_one_run_is_beside_the_one_from_tuned_runs(out):
    (table,) = tables(read_runs(out))
    (row,) = prefixes.measured_rows(table)
    found = prefixes.areas(prefixes.by_seed(row))
    assert found == pytest.approx({seed: 0.71 + 0.001 * seed + 0.0004 * (seed % 2) for seed in range(4)})
    (comparison,) = prefixes.against_lora(table)
    assert comparison.differences == pytest.approx([-0.005, -0.0046, -0.005, -0.0046])
    ((cells,), (runs,)) = prefixes.rows(table)
    assert cells[:2] == ["matryoshka 12 → 8", "1, 2, 4, 8"]
    assert cells[2] == formats.interval(*stats.mean_interval(list(found.values())))
    assert cells[3] == formats.interval(*stats.mean_interval([0.5 + value for value in found.values()]))
    assert cells[5] == formats.interval(*stats.mean_interval([0.715, 0.716, 0.717, 0.718]))
    assert [cells[4], cells[6], len(runs)] == ["4", "4", 4]
    titles = [grid.title for grid in format_table.further_tables(table, [])]
    assert prefixes.TITLE in titles
    assert any(title.startswith(prefixes.AGAINST) for title in titles)
    figure = plot.draw(table)
    labels = [line.get_label() for line in figure.axes[0].lines if not line.get_label().startswith("_")]
    assert labels[:2] == ["matryoshka 12 → 8, one run", "matryoshka 12 → 8, cut by SVD"]
    assert "lora, a tuned run for each rank" in labels


def test_without_tuned_runs_the_area_stands_alone(tmp_path, write_run):
    write_prefixes(write_run(tmp_path, "matryoshka", 0, 8), [0.7, 0.71, 0.72, 0.73])
    write_prefixes(write_run(tmp_path, "matryoshka", 1, 8), [0.7, 0.72, 0.73], RANKS[:3])
    (table,) = tables(read_runs(tmp_path))
    (measured,) = prefixes.measured_rows(table).values()
    assert [list(scores) for scores in measured.values()] == [[1, 2, 4]] * 2, "the ranks that both have"
    assert prefixes.against_lora(table) == []
    ((cells,), _) = prefixes.rows(table)
    assert cells[3] == formats.BLANK
    assert cells[5:] == [formats.BLANK] * 2


def test_tuned_runs_count_at_their_best_checkpoint_as_the_prefixes_do(out):
    for path in out.glob("lora-*/summary.json"):
        summary = json.loads(path.read_text())
        path.write_text(json.dumps(summary | {"metric": summary["metric"] | {"test_last": 0.1}}))
    (table,) = tables(read_runs(out))
    (comparison,) = prefixes.against_lora(table)
    assert comparison.differences == pytest.approx([-0.005, -0.0046, -0.005, -0.0046])


def test_another_metric_is_not_taken_for_the_table_s(tmp_path, write_run):
    write_prefixes(write_run(tmp_path, "matryoshka", 0, 8), [0.7] * 4, metric="f1")
    (table,) = tables(read_runs(tmp_path))
    assert prefixes.measured_rows(table) == {}
    assert plot.draw(table) is None
    (note,) = [note for note in fairness.notes(table) if "is omitted" in note]
    assert note.startswith("prefixes.json of matryoshka 12 → 8, seed 0, cannot be read")
