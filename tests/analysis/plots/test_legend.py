import pytest

from analysis.plots import legend, style

LONG = "adalora 12 → 8, allocator rank_map, shuffle within_family, a_long_setting a_long_value"


def drawn(labels, columns=3):
    figure = style.figure(7, 3.8)
    axes = figure.subplots()
    for place, label in enumerate(labels):
        axes.plot([0, 1], [place, place], label=label)
    axes.set_xlabel("step")
    found = legend.below(figure, legend.entries([axes]), columns, handlelength=3.5)
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
    assert legend.entries([left, right])[1] == ["lora 8", "full"]
