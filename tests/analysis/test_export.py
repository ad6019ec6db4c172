import csv
import re
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import export, format_table
from analysis.load import read_runs
from analysis.report import load, write_report
from analysis.tables import tables

HARD = format_table.TextTable(
    r"50% of a_b & {c} \ d", ["method", "x|y", "α·r²"],
    [["lora → 8", "−1 ± 2 × 3", "~^#$"], ["[0.1, a_b%]", "< 0.001", "≤ …"], ["*", "", "–"]],
)  # fmt: skip
PDFLATEX = shutil.which("pdflatex")


def found(file):
    """Whether the LaTeX that is installed has the package."""
    return subprocess.run(["kpsewhich", file], capture_output=True).returncode == 0


LATEX = PDFLATEX is not None and found("booktabs.sty") and found("graphicx.sty")
WORDS = st.text("ab01 .,[]*|%&_#$~^\\{}<>−±→×÷αλφ²‖", max_size=12)


NARROWING = format_table.TextTable(
    "A table that is shown in ever less room", ["comparison", "verdict", "test, last checkpoint", "g"],
    [["adalora 12 → 8, allocator uniform − lora 8", "lora better", "0.7810 ± 0.0112", "0.1"], ["b", "?", "1", "2"]],
    first=("comparison", "verdict", "test, last checkpoint"),
)  # fmt: skip


def test_plain_text_has_everything_where_there_is_room():
    lines = export.plain(NARROWING).splitlines()
    assert lines[0] == NARROWING.title
    assert lines[2].endswith("verdict  test, last checkpoint    g")
    assert lines[4].startswith("adalora 12 → 8, allocator uniform − lora 8  lora better")
    assert export.plain(NARROWING, 200) == export.plain(NARROWING)


def test_plain_text_gives_way_in_steps():
    decisive = export.plain(NARROWING, 80)
    assert decisive.splitlines()[2].split() == ["comparison", "verdict", "test,", "last", "checkpoint"]
    assert decisive.endswith("(1 more column on the page)")
    stacked = export.plain(NARROWING, 74).splitlines()
    assert [line.strip() for line in stacked[2:4]] == [
        "test, last",
        "comparison" + 38 * " " + "verdict       checkpoint",
    ]
    assert stacked[5].startswith("adalora 12 → 8, allocator uniform − lora 8  ")
    folded = export.plain(NARROWING, 60).splitlines()
    assert folded[5].endswith("lora better  0.7810 ± 0.0112")
    assert folded[6].startswith("  ")  # further lines of a name are indented
    listed = export.plain(NARROWING, 40).splitlines()
    assert "  test, last checkpoint: 0.7810 ± 0.0112" in listed
    for width in range(30, 100):
        assert max(map(len, export.plain(NARROWING, width).splitlines())) <= width


def test_markdown_has_every_cell_and_no_stray_border():
    lines = export.markdown([HARD]).splitlines()
    assert lines[0] == r"**50% of a_b & {c} \ d**"
    assert lines[2:5] == [
        r"| method | x\|y | α·r² |",
        "| --- | ---: | ---: |",
        "| lora → 8 | −1 ± 2 × 3 | ~^#$ |",
    ]


def test_latex_escapes_what_it_would_take_for_commands():
    text = export.latex([HARD])
    assert r"\caption{50\% of a\_b \& \{c\} \textbackslash{} d}" in text
    assert r"lora $\to$ 8 & $-$1 $\pm$ 2 $\times$ 3 & \textasciitilde{}\textasciicircum{}\#\$ \\" in text
    assert "\n{}[0.1, a\\_b\\%] & " in text  # else \\ would take the bracket for its argument
    assert "\n{}* & " in text


def structure(text):
    """[(columns declared, cells of every row)] of each tabular, after the checks that every engine makes first."""
    assert re.sub(r"[ -~\n]", "", text) == ""  # plain ASCII: any engine reads it
    bare = re.sub(r"\\[%&_#${}\\]", " ", re.sub(r"\\\\$", "", text, flags=re.MULTILINE))
    bare = re.sub(r"%.*", "", bare)
    depth = 0
    for letter in bare:
        depth += {"{": 1, "}": -1}.get(letter, 0)
        assert depth >= 0
    assert depth == 0
    assert "#" not in bare
    assert all(line.count("$") % 2 == 0 for line in bare.splitlines())
    open_, found, rows = [], [], []
    for line in text.splitlines():
        if begun := re.match(r"\\begin\{(\w+)\}(?:\{(\w+)\})?$", line):
            open_.append(begun[1])
            columns, rows = len(begun[2] or ""), []
        elif ended := re.match(r"\\end\{(\w+)\}\}?$", line):
            assert ended[1] == open_.pop()
            found += [(columns, rows)] if ended[1] == "tabular" else []
        elif line.endswith(r" \\"):
            rows.append(len(re.findall(r"(?<!\\)&", line)) + 1)
            assert not line.lstrip().startswith(("[", "*"))
    assert open_ == []
    return found


def every_table(out):
    """The tables for a paper, in their order."""
    report = load(out)
    (table,), (judged,) = report.tables, report.family.verdicts
    found = format_table.verdict_table(table, report.family, judged)
    return [*found, format_table.format_table(table), *format_table.further_tables(table, judged)]


def test_a_long_table_is_cut_where_a_page_ends():
    rows = [[f"lora {i}", "0.8"] for i in range(2 * export.PAGE + 1)]
    text = export.latex(
        [
            format_table.TextTable("all", ["method", "accuracy"], rows),
            format_table.TextTable("few", ["method", "n"], rows[:2]),
        ]
    )
    assert re.findall(r"\\caption\{(.*)\}", text) == ["all (1 of 3)", "all (2 of 3)", "all (3 of 3)", "few"]
    parts = [len(found) - 1 for _, found in structure(text)]
    assert sum(parts) == len(rows) + 2
    assert max(parts) <= export.PAGE
    assert min(parts[:3]) > export.PAGE / 2
    assert re.findall(r"lora (\d+)", text)[: len(rows)] == [str(i) for i in range(len(rows))]


@pytest.mark.usefixtures("no_pictures")
def test_every_row_has_as_many_cells_as_columns(quickstart):
    text = (write_report(quickstart, load(quickstart)).parent / "tables.tex").read_text()
    grids = every_table(quickstart)
    assert structure(text) == [(len(grid.header), [len(grid.header)] * (1 + len(grid.rows))) for grid in grids]


@given(WORDS, st.lists(st.tuples(WORDS, WORDS, WORDS), max_size=3))
def test_no_name_breaks_the_table(title, rows):
    text = export.latex([format_table.TextTable(title, ["a", "b", "c"], rows)])
    assert structure(text) == [(3, [3] * (1 + len(rows)))]


@pytest.mark.usefixtures("no_pictures")
def test_the_files_beside_the_page_hold_the_tables(quickstart):
    folder = write_report(quickstart, load(quickstart)).parent
    grids = every_table(quickstart)
    assert (folder / "tables.md").read_text() == export.markdown(grids)
    assert (folder / "tables.tex").read_text() == export.latex(grids)
    (table,) = tables(read_runs(quickstart))
    for row in format_table.format_table(table).rows:
        assert f"| {' | '.join(row)} |" in (folder / "tables.md").read_text()


@pytest.mark.usefixtures("no_pictures")
def test_every_table_is_a_csv_file_named_after_it(quickstart):
    folder = write_report(quickstart, load(quickstart)).parent / "tables"
    (table,) = tables(read_runs(quickstart))
    grids = [*every_table(quickstart), format_table.runs_table(table)]
    names = [
        "minilm-l6-rotten-tomatoes-targets-all-not-declared-beforehand.csv",
        "minilm-l6-rotten-tomatoes-targets-all.csv",
        "minilm-l6-rotten-tomatoes-targets-all-the-budget-counted-four-ways.csv",
        "minilm-l6-rotten-tomatoes-targets-all-all-runs.csv",
    ]
    assert {path.name for path in folder.iterdir()} == set(names)
    for name, grid in zip(names, grids, strict=True):
        with (folder / name).open(newline="", encoding="utf-8") as file:
            assert list(csv.reader(file)) == [list(grid.header), *map(list, grid.rows)]


def test_tables_of_one_title_have_files_of_their_own():
    same = format_table.TextTable("Against LoRA (exploratory)", ["a"], [["1"]])
    files = export.csv_files([same, same._replace(rows=[["2"]])], "m, t")
    assert files == {"m-t-against-lora.csv": "a\n1\n", "m-t-against-lora-2.csv": "a\n2\n"}


@pytest.mark.skipif(not LATEX, reason="pdflatex with booktabs and graphicx is not installed")
def test_latex_compiles_and_wide_and_long_tables_stay_on_the_page(quickstart, tmp_path):
    wide = format_table.TextTable("wide", ["a wide column"] * 20, [["0.7810 ± 0.0112"] * 20])
    long = format_table.TextTable("long", ["method", "accuracy"], [["lora", "0.8"]] * (2 * export.PAGE))
    body = export.latex([HARD, wide, long, *every_table(quickstart)])
    document = f"\\documentclass{{article}}{export.PACKAGES}\\begin{{document}}\n{body}\\end{{document}}\n"
    (tmp_path / "t.tex").write_text(document)
    command = [PDFLATEX, "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "Overfull \\hbox" not in done.stdout
    assert "too large for page" not in done.stdout
    assert (tmp_path / "t.pdf").stat().st_size > 10_000
