import json

import numpy as np
import pytest

from analysis import weight_change
from analysis.load import read_runs
from analysis.plots import intruders, similarity, spectrum
from analysis.tables import tables
from tests.analysis.conftest import modules
from tests.analysis.test_weight_change import content, put


def test_the_spectrum_s_lines_are_medians_over_modules(quickstart):
    put(quickstart, "delta.json", content(factors=False), "full-*-s1")
    table, run = put(quickstart, "delta.json", content())
    axes = spectrum.draw(table).axes[0]
    assert len(axes.get_lines()) == 2
    line = axes.get_lines()[1]
    assert line.get_label() == "adalora 12 → 8"
    assert line.get_xdata().tolist() == [1, 2, 3]
    assert line.get_ydata() == pytest.approx([1.4, 0.7, 0.1])  # medians of 0.4, 0.8 … 2.4, of half of it, of 0.1
    short = content()
    short["modules"][modules()[0]]["singular_values"] = [0.4]
    table, run = put(quickstart, "delta.json", short)
    assert spectrum.values([weight_change.read(run)])[0].tolist() == [0.4, 0.0, 0.0]


def test_the_intruders_dots_are_the_seeds(quickstart):
    put(quickstart, "delta.json", content(), "adalora-*-s1")
    put(quickstart, "delta.json", content(), "full-*-s0")
    value = content()
    for module in value["modules"].values():
        module["intruders"] = 1
    table, _ = put(quickstart, "delta.json", value)
    axes = intruders.draw(table).axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["full  (1 seed)", "adalora 12 → 8  (2 seeds)"]
    assert [line.get_xdata().tolist() for line in axes.get_lines()] == [[2.5], [1.0, 2.5]]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([2.5, 1.75])


def test_similarity_is_averaged_over_the_modules_that_have_the_directions(quickstart):
    other = next(quickstart.glob("adalora-*-s1")).name
    found = {
        "a": {"sides": [20, 10], "input": [[0.5, 0.7], [0.9, 1.0]], "output": [[0.1, 0.2], [0.3, 0.4]]},
        "b": {"sides": [20, 10], "input": [[0.1]], "output": [[0.3]]},
    }
    table, run = put(quickstart, "similarity.json", {"with": {other: found}})
    (pair,) = similarity.read(run, {run.folder.name: "one", other: "two"})
    assert pair.label == "i: one\nj: two"
    assert pair.observed["input"] == pytest.approx(np.array([[0.3, 0.7], [0.9, 1.0]]))
    assert pair.chance["input"] == pytest.approx(np.array([[0.1, 0.2], [0.2, 0.2]]))
    assert pair.chance["output"] == pytest.approx(np.array([[0.05, 0.1], [0.1, 0.1]]))
    panels = similarity.draw(table).axes[:4]
    assert [axes.get_title() for axes in panels] == ["input side", "chance", "output side", "chance"]
    np.testing.assert_allclose(panels[2].images[0].get_array(), pair.observed["output"])
    assert panels[0].get_ylabel() == "i: adalora 12 → 8, seed 0\nj: adalora 12 → 8, seed 1"
    assert {axes.images[0].get_clim() for axes in panels} == {(0.0, 1.0)}  # the largest value there is


@pytest.mark.parametrize("text", ["{", "{}", '{"with": {}}', json.dumps({"with": {"x": {"a": {"input": [[1]]}}}})])
def test_nothing_to_draw_without_a_measurement(quickstart, text):
    table, run = put(quickstart, "similarity.json", text)
    assert similarity.draw(table) is None
    assert similarity.read(run, {}) == []
    (table,) = tables(read_runs(quickstart))
    assert spectrum.draw(table) is None
    assert intruders.draw(table) is None
