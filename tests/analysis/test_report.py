import base64
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from analysis import format_table, report
from analysis import page as page_of
from analysis.fairness import notes
from analysis.load import read_runs
from tests.analysis.conftest import write_quickstart
from tests.representatives import representatives

ANALYSIS = Path(report.__file__).parent
URL = re.compile(r'(?:src|href|url|action)\s*[=(]\s*["\']?([^"\'>)\s]+)')


class Page(HTMLParser):
    """The words, links, pictures, headings and identifiers of a page."""

    def __init__(self, path):
        super().__init__()
        self.words, self.links, self.anchors, self.images, self.tags = [], [], [], [], set()
        self.headings, self.ids = [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        self.headings += [int(tag[1])] if re.fullmatch("h[1-6]", tag) else []
        if tag == "a":
            (self.anchors if values["href"].startswith("#") else self.links).append(values["href"])
        if tag == "img":
            self.images.append(values)

    def handle_data(self, data):
        self.words.append(data.strip())

    @property
    def text(self):
        return " ".join(self.words)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """full, LoRA 8 and AdaLoRA 12 → 8 with their page, for tests that only read; (folder, page)."""
    out = write_quickstart(tmp_path_factory.mktemp("written") / "runs")
    return out, write(out)


def write(out):
    return Page(report.write_report(out, report.load(out)))


def test_the_page_holds_every_cell_and_verdict(written):
    quickstart, page = written
    found = report.load(quickstart)
    (table,), (judged,) = found.tables, found.family.verdicts
    every = [
        format_table.format_table(table),
        *format_table.verdict_table(table, found.family, judged),
        *format_table.further_tables(table, judged),
        format_table.runs_table(table),
    ]
    assert len(every) == 4
    for text_table in every:
        assert {text_table.title, *text_table.header} <= {*page.words, table.title}
        assert {cell for row in text_table.rows for cell in row} <= set(page.words)
    for line in [*notes(table), *report.LEGEND, *page_of.warnings(found.family, None)]:
        assert line in page.text
    assert "metric.test" in page.text
    assert "6 finished" in page.text


def test_the_page_needs_nothing_else(written):
    quickstart, page = written
    source = (quickstart / "report" / "index.html").read_text()
    assert page.tags.isdisjoint({"iframe", "object"})
    assert "<script src" not in source
    assert all(re.match("data:image/(png|svg.xml);base64,", image["src"]) for image in page.images)
    targets = [target for target in URL.findall(source) if not target.startswith(("data:", "#"))]
    assert targets
    assert all(target.startswith("../") for target in targets)
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", source)


def test_headings_are_in_order_and_links_lead_somewhere(written):
    _, page = written
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(page.headings))
    assert len(set(page.ids)) == len(page.ids)
    assert {anchor.removeprefix("#") for anchor in page.anchors} <= set(page.ids)
    assert len(page.anchors) > 4


def test_every_run_is_linked(written):
    quickstart, page = written
    folders = {(quickstart / "report" / unquote(link)).resolve() for link in page.links}
    assert folders == {run.folder.resolve() for run in read_runs(quickstart)}


def test_pictures_are_files_next_to_the_page_and_not_blank(written):
    quickstart, page = written
    files = {path.name for path in (quickstart / "report").iterdir()}
    rank_map = next(name for name in files if name.startswith("rank_map_adalora-")).rpartition(".")[0]
    names = ["agreement", "budget", "forest", "learning_curves", "memory", "orthogonality", "parameters", "time",
             "trajectories", rank_map]  # fmt: skip
    pictures = {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert files == {"index.html", "tables", "tables.md", "tables.tex", *pictures}
    embedded = {base64.b64decode(image["src"].partition(",")[2]) for image in page.images}
    assert len(embedded) == len(names)
    assert embedded <= {(quickstart / "report" / name).read_bytes() for name in pictures}
    for name in names:
        assert ElementTree.parse(quickstart / "report" / f"{name}.svg").getroot().tag.endswith("svg")
        pixels = np.asarray(Image.open(quickstart / "report" / f"{name}.png").convert("L"))
        assert pixels.shape[1] > 600
        assert 0.005 < np.mean(pixels < 200) < 0.8
    assert all(len(image["alt"]) > 20 for image in page.images)


@pytest.mark.usefixtures("no_pictures")
def test_uncounted_runs_are_listed_with_their_reasons(quickstart, write_run):
    failed = write_run(quickstart, "lora", 5)
    (failed / "status.json").write_text(json.dumps({"state": "failed", "error": "Out of memory at <step> 3 & gone."}))
    broken = write_run(quickstart, "lora", 6)
    (broken / "summary.json").write_text("{")
    page = write(quickstart)
    assert "Out of memory at <step> 3 & gone." in page.words  # escaped in the source
    assert "summary.json cannot be read" in page.words
    assert {failed.name, broken.name} <= set(page.words)
    assert "6 finished, 1 corrupt, 1 failed" in page.text


@pytest.mark.usefixtures("no_pictures")
def test_damaged_records_are_told(quickstart):
    (folder,) = quickstart.glob("lora-*-s0")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11')
    assert f"{folder.name}/metrics.jsonl: 1 lines cannot be read" in write(quickstart).text


@pytest.mark.slow
def test_several_tables_keep_their_pictures_apart_and_old_ones_go(quickstart, write_run):
    stsb = {"name": "pearson", "higher_is_better": True, "best": 0.1, "best_step": 1, "last": -0.2, "test": None}
    folders = [
        write_run(quickstart, "lora", seed, config={"task": "stsb"}, task="stsb", metric=stsb) for seed in (0, 1)
    ]
    page = write(quickstart)
    names = {f"learning_curves_{place}.{kind}" for place in (1, 2) for kind in ("png", "svg")}
    assert {path.name for path in (quickstart / "report").glob("learning*")} == names
    assert (quickstart / "report" / "tables" / "minilm-l6-stsb-targets-all.csv").is_file()
    assert "pearson, last dev" in page.words
    assert "-0.2000 ± 0.0000" in page.words
    for folder in folders:
        (folder / "status.json").write_text('{"state": "running"}')
    write(quickstart)
    assert {path.name for path in (quickstart / "report").glob("learning*")} == {
        "learning_curves.png",
        "learning_curves.svg",
    }
    assert not list((quickstart / "report" / "tables").glob("*stsb*"))


@pytest.mark.usefixtures("no_pictures")
def test_of_many_tasks_all_but_three_are_folded(tmp_path, write_run):
    for task in "abcdef":
        write_run(tmp_path, "lora", 0, config={"task": task}, task=task)
    report.write_report(tmp_path, report.load(tmp_path))
    source = (tmp_path / "report" / "index.html").read_text()
    assert re.findall(r'<details class="whole"( open)?>', source) == [" open"] * 3 + [""] * 3
    assert source.count('<section id="table-') == 6


def test_runs_without_any_records_still_make_a_page(tmp_path, write_run):
    for method in ("lora", "adalora"):
        folder = write_run(tmp_path, method, 0, parameters=None, rank=None, time=None, memory=None, device=None)
        for name in ("metrics.jsonl", "allocations.jsonl", "config.yaml"):
            (folder / name).unlink(missing_ok=True)
    page = write(tmp_path)
    assert page.images == []
    assert not re.search(r"\b(nan|None)\b", page.text)


@pytest.mark.slow
@pytest.mark.parametrize("script", representatives(["compare.py", "report.py"], 1))
def test_the_scripts_run_from_any_directory(quickstart, tmp_path, script):
    done = subprocess.run(
        [sys.executable, ANALYSIS / script, quickstart], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={**os.environ, "COLUMNS": "100"},
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert Path(lines[-1]) == (quickstart / "report" / "index.html").resolve()
    assert Path(lines[-1]).is_file()
    if script == "compare.py":
        assert report.as_text(report.load(quickstart), everything=False) in done.stdout
        assert max(map(len, lines[:-1])) <= 100
    else:
        assert len(lines) == 1


@pytest.mark.parametrize("width", [60, 100, 200])
def test_the_terminal_ends_with_the_answers_and_fits(tmp_path, write_run, width):
    for seed in range(3):
        for allocator in ("global_top", "uniform"):
            write_run(tmp_path, "adalora", seed, config={"allocator._target_": f"adarank.allocators.{allocator}"})
        write_run(tmp_path, "lora", seed)
        (write_run(tmp_path, "lora", seed + 5) / "summary.json").write_text("{")
    text = report.as_text(report.load(tmp_path), width)
    assert max(map(len, text.splitlines())) <= width
    assert text.startswith("How sure is that? ")
    words = " ".join(text.split())
    order = ["How sure is that?", "Not declared beforehand", "verdict", "budget, counted four ways",
             "Not counted (9 finished, 3 corrupt)", "± is the half-width", "Final ranks of adalora", "▇",
             "Which method is better?", "What does it cost?", "Where did the rank go?"]  # fmt: skip
    places = [words.index(each) for each in order]
    assert places == sorted(places)


def test_the_smaller_tables_are_printed_on_request(quickstart):
    found = report.load(quickstart)
    short, whole = (report.as_text(found, 100, everything) for everything in (False, True))
    titles = re.search(r"On the page and with --all: (.*?)\.\n", short, re.DOTALL)[1].replace("\n ", "").split("; ")
    assert titles == ["The budget, counted four ways"]
    for title in titles:
        assert f"\n{title}" in whole
        assert f"\n{title}" not in short
    assert "accuracy, test" in short
    assert short.splitlines()[-6:] == whole.splitlines()[-6:]
    assert not any(line in " ".join(short.split()) for line in report.LEGEND)


@pytest.mark.slow
def test_analysis_needs_neither_torch_nor_wandb_nor_more_of_adarank_than_its_run_folders(quickstart):
    heavy = ("torch", "wandb", "transformers", "matplotlib.pyplot")
    light = ("adarank", "adarank.runs", "adarank.errors")
    code = f"import sys; from analysis.report import main; main([{str(quickstart)!r}], show=True)\n"
    code += f"loaded = [m for m in sys.modules if m in {heavy}]\n"
    code += "own = [m for m in sys.modules if m.startswith('adarank') and not m.startswith('adarank.runs.')]\n"
    code += f"loaded += [m for m in own if m not in {light}]\n"
    code += "sys.exit(str(loaded or ''))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ANALYSIS.parent, capture_output=True, text=True)
    assert done.stderr.strip() == ""


@pytest.mark.parametrize("show", [True, False])
def test_bad_folders_are_one_sentence_and_status_2(tmp_path, write_run, capsys, show):
    def refused(folder):
        assert report.main([str(folder)], show=show) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert str(folder) in captured.err
        return captured.err

    assert "is not a folder" in refused(tmp_path / "absent")
    assert "contains no run folder" in refused(tmp_path)
    for seed, state in enumerate(("failed", "running", "running")):
        (write_run(tmp_path, "lora", seed) / "status.json").write_text(json.dumps({"state": state}))
    assert "holds no finished run: 1 failed, 2 running" in refused(tmp_path)
    assert not (tmp_path / "report").exists()


@pytest.mark.usefixtures("no_pictures")
def test_a_report_that_cannot_be_written_is_status_2_after_the_table(quickstart, capsys):
    (quickstart / "report").write_text("a file stands where the folder should be")
    assert report.main([str(quickstart)], show=True) == 2
    captured = capsys.readouterr()
    assert "adalora" in captured.out
    assert captured.err.count("\n") == 1
    assert str(quickstart / "report") in captured.err


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["--wrong"]])
def test_wrong_usage(arguments, capsys):
    assert report.main(arguments, show=True) == 2
    usage, error = capsys.readouterr().err.splitlines()
    assert usage == "usage: python analysis/compare.py [-h] [--times FILE] [--all] RUNS_FOLDER"
    assert error.startswith("python analysis/compare.py: error: ")
