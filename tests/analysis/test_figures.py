"""The list of figures: everything in plots/ that draws is on it, and from a full sweep everything is drawn."""

import base64
import json
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from adarank.runs.files import read_lines
from analysis import figures as room
from analysis import plots
from analysis.figures import figures
from analysis.load import read_runs
from analysis.plots import style
from analysis.tables import tables
from analysis.verdicts import family
from tests.analysis.conftest import map_settings

NAMES = [
    "forest",
    "learning_curves",
    "parameters",
    "time",
    "memory",
    "learning_rates",
    "budget",
    "agreement",
    "trajectories",
    "scores",
    "orthogonality",
]


@pytest.fixture
def full(quickstart, write_run):
    """The quickstart with scores in its allocation records and two more learning rates of LoRA."""
    for folder in quickstart.glob("adalora-*"):
        records, _ = read_lines(folder / "allocations.jsonl")
        for record in records:
            record["score_quantiles"] = {m: [0.1, 0.2, 0.3, 0.4, 0.5 + record["step"]] for m in record["ranks"]}
        (folder / "allocations.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for lr in (1e-3, 4e-3):
        write_run(quickstart, "lora", 0, config={"train.lr": lr}, metric__best=0.1, metric__last=0.1)
    (table,) = tables(read_runs(quickstart))
    return table


def judged_of(table):
    return family([table]).verdicts[0]


def drawn(table):
    read = [{run.name: read_lines(run.folder / name)[0] for row in table.rows for run in row.runs}
            for name in ("metrics.jsonl", "allocations.jsonl")]  # fmt: skip
    return {name: (caption, figure) for name, caption, figure in figures(table, judged_of(table), *read)}


def test_a_full_sweep_has_every_figure_with_a_caption_and_named_axes(full):
    found = {name: value for name, value in drawn(full).items() if value[1] is not None}
    (adaptive,) = [row for row in full.rows if row.adaptive]
    assert list(found) == [*NAMES, f"rank_map_{adaptive.configuration}"]
    for name, (caption, figure) in found.items():
        assert len(caption) > 40
        assert caption.endswith(".")
        panel = figure.axes[0]
        assert panel.get_xlabel(), name
        assert panel.get_ylabel() or [label.get_text() for label in panel.get_yticklabels()], name


@pytest.mark.slow
def test_no_text_is_cut_off_and_no_numbers_collide_however_long_the_names(full, quickstart, write_run):
    for seed in (0, 1):  # other kinds of adalora: all get long names
        config = {"allocator._target_": "adarank.allocators.a_rather_long_name", "schedule": None, "score": None}
        source = write_run(quickstart, "adalora", seed, config=config)
        pieces = {"allocator": "another_one", "schedule": "anything_but_short", "score": "smoothed_sensitivity"}
        config = {f"{piece}._target_": f"adarank.pieces.{name}" for piece, name in pieces.items()}
        write_run(quickstart, "adalora", seed, config=config)
        write_run(quickstart, "adalora", seed, config=map_settings(source, "within_family"), digest=f"abcdef{seed}")
    (table,) = tables(read_runs(quickstart))
    for name, (_, figure) in drawn(table).items():
        if figure is None:
            continue
        figure.draw_without_rendering()
        drawn_on, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert min(drawn_on.x0, drawn_on.y0) >= -0.02, name
        assert drawn_on.x1 <= width + 0.02, name
        assert drawn_on.y1 <= height + 0.02, name
        for axes in figure.axes:
            boxes = [tick.get_window_extent() for tick in axes.get_xticklabels() if tick.get_rotation() == 0]
            assert not any(box.overlaps(after) for box, after in pairwise(boxes) if box.width and after.width), name


def test_no_file_of_plots_is_left_out():
    files = Path(plots.__path__[0]).glob("*.py")
    draws = {path.stem for path in files if "\ndef draw(" in path.read_text(encoding="utf-8")}
    assert draws == {name for name in draws if hasattr(room, name)}
    assert len(draws) >= 9


def test_what_a_sweep_lacks_is_none(tmp_path, write_run):
    write_run(tmp_path, "lora", 0)
    (table,) = tables(read_runs(tmp_path))
    found = drawn(table)
    assert {name for name, (_, figure) in found.items() if figure is not None} == {
        "learning_curves", "parameters", "time", "memory",
    }  # fmt: skip


def test_pictures_are_the_drawn_figures_as_png_and_svg(full, monkeypatch):
    def two(*arguments):
        return [one for one in figures(*arguments) if one[0] in ("forest", "learning_rates")]

    monkeypatch.setattr(room, "figures", two)
    found, damaged = room.render_figures(full, judged_of(full), "_3")
    assert damaged == []
    assert [picture.name for picture in found] == ["forest_3", "learning_rates_3"]
    assert [picture.title for picture in found] == ["forest", "learning rates"]
    for picture in found:
        assert set(picture.files) == {f"{picture.name}.png", f"{picture.name}.svg"}
        assert picture.png.startswith(b"\x89PNG")
        size = [int.from_bytes(picture.png[i : i + 4], "big") for i in (16, 20)]
        assert size == pytest.approx([picture.width * room.DPI / 96, picture.height * room.DPI / 96], abs=2)
        root = ElementTree.fromstring(picture.svg)
        assert float(root.get("width").removesuffix("pt")) == pytest.approx(picture.width * 72 / 96, abs=1)
        smaller = min(picture.png, picture.svg, key=len)
        assert base64.b64decode(picture.uri.partition(",")[2]) == smaller


def test_both_forms_of_allocations_are_drawn_alike(quickstart, monkeypatch):
    """With every module named in every line, as files once were, and with a header and arrays."""

    def rendered():
        (table,) = tables(read_runs(quickstart))
        pictures, damaged = room.render_figures(table, judged_of(table), "")
        assert damaged == []
        return {name: content for picture in pictures for name, content in picture.files.items()}

    def two(*arguments):
        return [drawing for drawing in figures(*arguments) if drawing[0] in ("budget", "trajectories")]

    monkeypatch.setattr(room, "figures", two)
    before = rendered()
    assert set(before) == {f"{name}.{kind}" for name in ("budget", "trajectories") for kind in ("png", "svg")}
    for folder in quickstart.glob("adalora-*"):
        records, _ = read_lines(folder / "allocations.jsonl")
        lines = [{**record, "ranks": list(record["ranks"].values())} for record in records]
        lines = [{"modules": list(records[0]["ranks"])}, *lines]
        (folder / "allocations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert rendered() == before


def grey(colour):
    """Luminance, as a printer without colour renders it (Rec. 601)."""
    return float(np.dot([0.299, 0.587, 0.114], [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]))


def test_lines_stay_apart_without_colour():
    """Whatever two of eight lines look like in grey, style and marker differ; none is too pale for white paper."""
    looks = [style.style(place) for place in range(8)]
    for name in ("color", "linestyle", "marker"):
        assert len({look[name] for look in looks}) == 8
    assert max(grey(look["color"]) for look in looks) < 0.72
    assert len({(look["color"], look["marker"]) for look in map(style.style, range(64))}) == 64
