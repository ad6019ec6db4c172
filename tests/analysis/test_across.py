import numpy as np
import pytest

from analysis import report
from analysis.across import across
from analysis.load import read_runs
from analysis.tables import tables


def write_tasks(out, write_run, tasks, seeds, gain=0.02, **changes):
    for place, task in enumerate(tasks):
        for seed in range(seeds):
            level = 0.6 + 0.1 * place + 0.01 * seed
            write_run(out, "lora", seed, config={"task": task}, task=task, metric__test=level, **changes)
            better = level + gain + 0.001 * seed
            write_run(out, "adalora", seed, config={"task": task}, task=task, metric__test=better, **changes)


@pytest.mark.usefixtures("no_pictures")
def test_six_pairs_from_two_tasks_decide_what_three_of_each_cannot(tmp_path, write_run):
    write_tasks(tmp_path, write_run, ("cola", "sst2"), 3)
    found = tables(read_runs(tmp_path))
    (over,) = across(found)
    (verdict,) = over.verdicts
    assert over.title == "minilm_l6, targets all, test, over 2 tasks: cola, sst2"
    assert (verdict.text, verdict.pairs) == ("adalora better", 6)
    assert verdict.difference == pytest.approx(0.021)
    assert verdict.comparison.label == "adalora 12 → 8"
    assert verdict.comparison.differences.shape == (3, 2)
    runs, found = report.load(tmp_path)
    assert over.title in report.write_report(tmp_path, runs, found).read_text()
    assert over.title in report.as_text(runs, found)


def test_a_seed_that_one_task_lacks_leaves_its_pair_out(tmp_path, write_run):
    write_tasks(tmp_path, write_run, ("cola",), 3)
    write_tasks(tmp_path, write_run, ("sst2",), 2)
    (over,) = across(tables(read_runs(tmp_path)))
    assert over.verdicts[0].pairs == 5
    assert np.isnan(over.verdicts[0].comparison.differences).sum() == 1


def test_one_task_or_metrics_that_cannot_be_averaged_are_left_alone(tmp_path, write_run):
    write_tasks(tmp_path / "a", write_run, ("cola",), 2)
    assert across(tables(read_runs(tmp_path / "a"))) == []
    write_tasks(tmp_path / "b", write_run, ("cola", "e2e"), 2, metric__higher_is_better=False)
    assert across(tables(read_runs(tmp_path / "b"))) == []
