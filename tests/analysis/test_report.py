import base64
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from analysis import format_table, report
from analysis.fairness import notes
from analysis.load import read_runs
from analysis.tables import tables
from tests.analysis.conftest import write_quickstart
from tests.representatives import representatives

ANALYSIS = Path(report.__file__).parent
URL = re.compile(r'(?:src|href|url|data|action)\s*[=(]\s*["\']?([^"\'>)\s]+)')


class Page(HTMLParser):
    """The words, links and pictures of a page."""

    def __init__(self, path):
        super().__init__()
        self.words, self.links, self.images, self.tags = [], [], [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        values = dict(attrs)
        if tag == "a":
            self.links.append(values["href"])
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
    runs, found = report.load(out)
    return Page(report.write_report(out, runs, found))


def test_the_page_holds_every_cell_and_verdict(written):
    quickstart, page = written
    (table,) = tables(read_runs(quickstart))
    for row in table.rows:
        for name, cell in zip(format_table.header(table), format_table.row_cells(table, row), strict=True):
            assert name in page.words
            assert cell in page.words
    verdict_grid, budget_grid = format_table.further_tables(table)
    assert (len(verdict_grid.rows), len(budget_grid.rows)) == (2, 2)
    for grid in (verdict_grid, budget_grid):
        assert {grid.title, *grid.header, *(cell for row in grid.rows for cell in row)} <= set(page.words)
    for line in [*notes(table), *report.LEGEND]:
        assert line in page.text
    assert "95% t interval" in page.text
    assert "metric.test" in page.text
    assert "6 finished" in page.text


def test_the_page_needs_nothing_else(written):
    quickstart, page = written
    source = (quickstart / "report" / "index.html").read_text()
    assert page.tags.isdisjoint({"link", "iframe", "object"})
    assert "<script src" not in source
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.images)
    targets = [target for target in URL.findall(source) if not target.startswith("data:image/png;base64,")]
    assert targets
    assert all(target.startswith("../") for target in targets)
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", source)


def test_every_run_is_linked(written):
    quickstart, page = written
    folders = {(quickstart / "report" / unquote(link)).resolve() for link in page.links}
    assert folders == {run.folder.resolve() for run in read_runs(quickstart)}


def test_pictures_are_the_files_beside_the_page_and_not_blank(written):
    quickstart, page = written
    files = sorted(path.name for path in (quickstart / "report").iterdir())
    rank_map = next(name for name in files if name.startswith("rank_map_adalora-"))
    names = "agreement budget forest learning_curves memory orthogonality parameters time trajectories"
    pictures = [*(f"{name}.png" for name in names.split()), rank_map]
    assert files == sorted(["index.html", "tables.md", "tables.tex", *pictures])
    embedded = {base64.b64decode(image["src"].partition(",")[2]) for image in page.images}
    assert embedded == {(quickstart / "report" / name).read_bytes() for name in files if name.endswith(".png")}
    for png in embedded:
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
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
    assert {path.name for path in (quickstart / "report").glob("learning*")} == {
        "learning_curves_1.png",
        "learning_curves_2.png",
    }
    assert "pearson, last dev" in page.words
    assert "-0.2000 ± 0.0000" in page.words
    for folder in folders:
        (folder / "status.json").write_text('{"state": "running"}')
    write(quickstart)
    assert [path.name for path in (quickstart / "report").glob("learning*")] == ["learning_curves.png"]


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
        [sys.executable, ANALYSIS / script, quickstart], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert Path(lines[-1]) == (quickstart / "report" / "index.html").resolve()
    assert Path(lines[-1]).is_file()
    if script == "compare.py":
        (table,) = tables(read_runs(quickstart))
        assert report.table_text(table) in done.stdout
        assert "cannot be decided with 2 pairs" in done.stdout
    else:
        assert len(lines) == 1


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
    assert "holds no run folder" in refused(tmp_path)
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
    assert capsys.readouterr().err == "usage: python analysis/compare.py RUNS_FOLDER\n"
