import re
import shutil
import subprocess

import pytest

from analysis import cells, export
from analysis.load import read_runs
from analysis.report import load, write_report
from analysis.tables import tables

HARD = cells.Grid(r"50% of a_b & {c} \ d", ["method", "x|y"], [["lora → 8", "−1 ± 2 × 3"]])


def test_markdown_has_every_cell_and_no_stray_border():
    lines = export.markdown([HARD]).splitlines()
    assert lines[0] == r"**50% of a_b & {c} \ d**"
    assert lines[2:] == [r"| method | x\|y |", "| --- | ---: |", "| lora → 8 | −1 ± 2 × 3 |"]


def test_latex_escapes_what_it_would_take_for_commands():
    text = export.latex([HARD])
    assert r"\caption{50\% of a\_b \& \{c\} \textbackslash{} d}" in text
    assert r"lora $\to$ 8 & $-$1 $\pm$ 2 $\times$ 3 \\" in text
    assert text.count(r"\begin{") == text.count(r"\end{") == 2


@pytest.mark.usefixtures("no_pictures")
def test_the_files_beside_the_page_hold_the_tables(quickstart):
    runs, found = load(quickstart)
    folder = write_report(quickstart, runs, found).parent
    (table,) = tables(read_runs(quickstart))
    grids = [cells.main_grid(table), *cells.grids(table)]
    assert (folder / "tables.md").read_text() == export.markdown(grids)
    assert (folder / "tables.tex").read_text() == export.latex(grids)
    for row in cells.main_grid(table).rows:
        assert f"| {' | '.join(row)} |" in (folder / "tables.md").read_text()
    assert re.sub(r"[ -~\n]", "", (folder / "tables.tex").read_text()) == ""  # plain ASCII: any engine reads it


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(tmp_path):
    document = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n" + export.latex([HARD])
    (tmp_path / "t.tex").write_text(document + "\\end{document}\n")
    subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"], cwd=tmp_path, check=True)
