"""The notebook in analysis/ runs from top to bottom and draws what it says."""

import json
from pathlib import Path

import matplotlib
import pytest

import adarank

ANALYSIS = Path(__file__).resolve().parents[2] / "analysis"


@pytest.fixture
def executed(monkeypatch):
    """The names that the code cells define, run in order in the notebook's folder; and their lines of code."""
    notebook = json.loads((ANALYSIS / "sweep_to_figure.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    monkeypatch.chdir(ANALYSIS)
    matplotlib.use("agg")
    names = {}
    for number, cell in enumerate(cells):
        exec(compile(cell, f"cell {number}", "exec"), names)
    yield names, [line for cell in cells for line in cell.splitlines() if line]
    names["plt"].close("all")


def test_a_sweep_becomes_a_figure_in_a_few_lines(executed):
    names, lines = executed
    assert len(lines) <= 20  # three of them are imports and the folder
    left, right = names["left"], names["right"]
    runs = adarank.frame(names["OUT"])
    assert len(runs) == 90
    drawn = [x for line in left.lines if len(line.get_xdata()) > 1 for x in line.get_xdata()]
    assert sorted(drawn) == sorted(runs["metric.test_last"])
    labels = [label.get_text() for label in left.get_yticklabels()]
    assert set(labels) == {path.name for path in (ANALYSIS / names["OUT"]).iterdir()}
    (image,) = right.images
    assert image.get_array().shape == (6, 6)
    assert image.get_array().mean() == pytest.approx(2)  # the budget
    names["fig"].canvas.draw()
