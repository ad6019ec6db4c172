import numpy as np
import pytest

from adarank.runs.files import read_lines
from analysis.load import read_runs
from analysis.plots import orthogonality
from analysis.tables import tables


def drawn(out):
    (table,) = tables(read_runs(out))
    metrics = {run.name: read_lines(run.folder / "metrics.jsonl")[0] for row in table.rows for run in row.runs}
    return metrics, orthogonality.draw(table, table.rows, metrics)


def test_a_line_for_every_method_whose_lambda_learns_and_none_for_the_others(quickstart):
    metrics, figure = drawn(quickstart)
    (line,) = figure.axes[0].get_lines()
    assert line.get_label() == "adalora 12 → 8"
    steps, values = line.get_data()
    recorded = [
        {r["step"]: r["orthogonality"] for r in records if "orthogonality" in r}
        for name, records in metrics.items()
        if name.startswith("adalora")
    ]
    assert list(steps) == sorted(recorded[0])
    assert list(values) == pytest.approx([np.mean([seed[step] for seed in recorded]) for step in steps])
    assert figure.axes[0].get_yscale() == "log"


def test_factors_that_are_exactly_orthonormal_have_a_linear_scale(tmp_path, write_run):
    run = write_run(tmp_path, "adalora")
    (run / "metrics.jsonl").write_text(
        "".join(f'{{"step": {s}, "split": "train", "loss": 1.0, "orthogonality": {s - 1}}}\n' for s in (1, 2))
    )
    _, figure = drawn(tmp_path)
    assert figure.axes[0].get_yscale() == "linear"


def test_runs_from_before_it_was_recorded_have_none(tmp_path, write_run):
    write_run(tmp_path, "lora")
    assert drawn(tmp_path)[1] is None
