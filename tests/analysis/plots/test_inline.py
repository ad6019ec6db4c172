import re
from xml.etree import ElementTree

import numpy as np
import pytest

from analysis.plots import inline

SVG = "{http://www.w3.org/2000/svg}"


def parsed(svg):
    return ElementTree.fromstring(svg)


def test_the_axis_puts_the_interval_the_margin_and_zero_where_they_belong():
    root = parsed(inline.axis("better", 0.02, (0.01, 0.03), 0.005, 0.04))
    width = inline.AXIS[0]

    def x(value):
        return width / 2 + value / 0.04 * (width / 2 - 8)

    band = root.find("rect")
    assert float(band.get("x")) == pytest.approx(x(-0.005), abs=0.1)
    assert float(band.get("width")) == pytest.approx(x(0.005) - x(-0.005), abs=0.2)
    interval = root.findall("path")[-1].get("d")
    assert [float(v) for v in re.match(r"M([\d.]+) [\d.]+H([\d.]+)", interval).groups()] == pytest.approx(
        [x(0.01), x(0.03)], abs=0.1
    )
    assert float(root.find("circle").get("cx")) == pytest.approx(x(0.02), abs=0.1)
    assert [text.text for text in root.findall("text")] == ["−0.04", "0", "+0.04"]
    assert root.get("aria-label") == "Difference +0.0200, interval [+0.0100, +0.0300]; margin ±0.005"


def test_what_lies_beyond_the_limit_ends_at_the_frame():
    root = parsed(inline.axis("undecided", 0.5, (-0.9, 1.0), None, 0.1))
    assert root.find("rect").get("fill") == "#fff"  # the mark; there is no band
    ends = re.match(r"M([\d.]+) [\d.]+H([\d.]+)", root.findall("path")[-1].get("d")).groups()
    assert [float(end) for end in ends] == [8, inline.AXIS[0] - 8]


def test_each_kind_of_verdict_has_a_shape_of_its_own():
    kinds = ("better", "equivalent", "undecided", "impossible")
    shapes = {re.sub(r"[\d.#-]+", "", inline.axis(kind, 0.0, None, None, 1.0)) for kind in kinds}
    assert len(shapes) == 4


def test_equal_ranks_have_equal_colours_and_cells_hold_their_numbers():
    values = np.array([[0.0, 8.0], [4.0, np.nan], [8.0, 0.26]])
    root = parsed(inline.rank_cells(values, (0.0, 8.0), "cividis", "Ranks & more"))
    assert root.get("aria-label") == "Ranks & more"
    cells = {path.get("fill"): path.get("d").count("M") for path in root.findall("path")}
    assert sorted(cells.values()) == [1, 2, 2]  # 4 | the two eights | 0 and 0.26
    assert [text.text for text in root.findall("text")] == ["0", "8", "4", "8", "0.3"]
    signed = parsed(inline.rank_cells(np.array([[-1.6, -0.2]]), (-8.0, 8.0), "PuOr", "t", digits=0))
    assert [text.text for text in signed.findall("text")] == ["−2", "0"]


def test_names_stand_at_the_height_of_their_rows():
    cells = parsed(inline.rank_cells(np.ones((3, 6)), (0.0, 1.0), "cividis", "t"))
    names = parsed(inline.row_names(["query", "key", "a < b"], 6))
    assert names.get("height") == cells.get("height")
    assert [text.text for text in names.findall("text")] == ["query", "key", "a < b"]
    ys = [float(text.get("y")) for text in names.findall("text")]
    height = float(cells.get("height")) / 3
    assert np.diff(ys).tolist() == [height, height]


def test_many_cells_are_small_and_without_numbers():
    values = np.arange(7.0 * 64).reshape(7, 64)
    svg = inline.rank_cells(values, (0.0, 448.0), "cividis", "t")
    root = parsed(svg)
    assert root.findall("text") == []
    assert len(root.findall("path")) == inline.LEVELS
    assert len(svg) < 64 * 7 * 25
    assert inline.row_names(["expert"] * 60, 4) == ""


def test_every_seed_is_a_dot_on_one_axis_and_a_bar_the_mean():
    root = parsed(inline.seeds([("lora 8", [0.5, 0.7], "#111111"), ("a < b", [0.9], "#222222")], "Every & all"))
    dots = [(float(dot.get("cx")), float(dot.get("cy")), dot.get("fill")) for dot in root.findall("circle")]
    assert [fill for *_, fill in dots] == ["#111111", "#111111", "#222222"]
    (low, first, _), (middle, same, _), (high, second, _) = dots
    assert first == same < second
    assert middle - low == pytest.approx(high - middle, abs=0.1)  # 0.5, 0.7, 0.9
    bars = [path.get("d") for path in root.findall("path") if path.get("stroke-width") == "3"]
    assert float(bars[0].split()[0].removeprefix("M")) == pytest.approx((low + middle) / 2, abs=0.1)
    texts = [text.text for text in root.findall("text")]
    assert texts == ["lora 8", "a < b", "0.5000", "0.9000"]
    assert 0 < low < high < inline.SEEDS[0]


def test_equal_scores_are_drawn():
    assert len(parsed(inline.seeds([("a", [0.5, 0.5], "#111111")], "t")).findall("circle")) == 2


def test_a_map_that_stands_alone_is_larger():
    values = np.ones((6, 12))
    small, large = (parsed(inline.rank_cells(values, (0.0, 1.0), "cividis", "t", large=large)) for large in (0, 1))
    assert int(large.get("width")) == inline.LARGE[0] > int(small.get("width"))
    assert parsed(inline.row_names(["q"] * 6, 12, True)).get("height") == large.get("height")
