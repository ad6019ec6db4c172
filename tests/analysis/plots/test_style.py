import pytest

from analysis.plots import style
from analysis.plots.style import EXTRA_LINE, LINE_HEIGHT, NAME_WIDTH, wrapped

LONG = "adalora 12 → 8, map shuffled (within_family), allocator a_long_name, a_long_setting a_long_value"
NAME = "adalora 2, allocator prune_expand, swaps 3, schedule null  (10\u00a0seeds)"


def drawn(labels, columns=3):
    figure = style.figure(7, 3.8)
    axes = figure.subplots()
    for place, label in enumerate(labels):
        axes.plot([0, 1], [place, place], label=label)
    axes.set_xlabel("step")
    found = style.legend_below(figure, [axes], columns, handlelength=3.5)
    figure.draw_without_rendering()
    return figure, axes, found


@pytest.mark.parametrize("labels", [["lora 8", "full"], [f"{LONG} {i}" for i in range(6)], ["x" * 300, "lora 8"]])
def test_nothing_is_cut_and_nothing_covered(labels):
    figure, axes, found = drawn(labels)
    box, frame = found.get_window_extent(), figure.bbox
    assert min(box.x0, box.y0) >= 0
    assert box.x1 <= frame.width
    assert box.y1 <= axes.get_tightbbox().y0 + 1
    assert axes.get_window_extent().height > 2.5 * figure.dpi
    shown = ["".join(text.get_text().split()) for text in found.get_texts()]
    assert shown == ["".join(label.split()) for label in labels]


def test_as_many_columns_as_fit():
    assert drawn(["lora 8", "full", "adalora 12 → 8", "map"])[2]._ncols == 3
    assert drawn(["a label of half a line, or so it seems", "and another one of that size"])[2]._ncols == 2
    assert drawn([LONG, LONG + " too"])[2]._ncols == 1


def test_a_label_of_several_axes_stands_once():
    figure = style.figure(7, 3)
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.plot([0, 1], label="lora 8")
    right.plot([1, 0], label="full")
    found = style.legend_below(figure, [left, right], columns=2)
    assert [text.get_text() for text in found.get_texts()] == ["lora 8", "full"]


def test_long_names_are_wrapped_and_nothing_of_them_is_lost():
    lines = wrapped(NAME).split("\n")
    assert max(map(len, lines)) <= NAME_WIDTH
    assert lines[-1].endswith("(10 seeds)")
    assert " ".join(lines).split() == NAME.split()
    assert wrapped("lora 8  (2\u00a0seeds)") == "lora 8  (2 seeds)"


def test_a_dollar_sign_starts_no_formula():
    assert wrapped("a $1") == r"a \$1"


def test_lines_of_a_list_are_as_high_as_the_longest_name_needs():
    def height(names):
        return style.listing(names, 1.0)[0].get_figheight()

    assert height(["full"]) == pytest.approx(1 + LINE_HEIGHT)
    assert height(["full", NAME]) == pytest.approx(1 + 2 * (LINE_HEIGHT + EXTRA_LINE))
