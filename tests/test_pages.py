"""Every command on every page starts, every example is tested, and the site builds.

The default suite parses commands and composes their settings. `make test-slow` runs those in blocks: tests/test_pages_run.py.
"""

import dataclasses
import doctest
import inspect
import json
import os
import re
import runpy
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec

import pytest
import torch

import adarank
from tests.pages import LANGUAGES, PAGES, ROOT, blocks, check, commands, read, setting_names, snippets, spans

RESULTS = ROOT / "experiments" / "results"
BY_OTHERS = {  # pages whose examples other tests run by their names
    "CONTRIBUTING": "tests/test_docs.py",
    "ecosystem": "tests/integrations/test_page.py",
    "loops": "tests/integrations/test_loops.py",
    "trainer": "tests/integrations/test_trainer.py",
}
HERE = {  # those that this file and tests/test_pages_run.py run
    ("README", "loop"),
    ("README", "score"),
    ("how_to", "library"),
    ("from_peft", "adarank"),
    ("from_peft", "peft"),
    ("first_sweep", "first_sweep"),
    ("runs", "frame"),
    ("large_models", "half"),
}


def by_name(pages):
    return pytest.mark.parametrize("page", pages, ids=lambda page: page.stem)


@by_name(PAGES)
def test_every_command_starts(page):
    for command in commands(page):
        try:
            check(command)
        except BaseException as error:
            raise AssertionError(f"{command}: {error}") from error


@pytest.mark.parametrize(
    "text",
    [
        "adarank run method=adalorra",
        "adarank run method=adalora train.lrr=1",
        "adarank run method=lora score=magnitude",
        "adarank inspectt FOLDER",
        "adarank export FOLDER lora",
        "adarank probe RUN --rowss 3",
        "python experiments/nowhere.py",
        "python experiments/bench/packing.py --jsonn FILE",
        "python experiments/protocol.py STUDY --out OUT --results RESULTS nowhere=1",
        "torchrun --nproc-per-node=2 experiments/run.py method=fulll",
        "make demmo",
        "make demo PIPARGS=x",
        "pip install '.[hubb]'",
        "conda install adarank",
    ],
)
def test_a_command_that_would_not_start_is_found(text, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"```sh\n{text} \\\n    # continued\n```\n")
    (command,) = commands(page)
    with pytest.raises((Exception, SystemExit)):
        check(command)


def test_commands_are_found_on_the_pages_that_have_them():
    found = {page.stem: len(commands(page)) for page in PAGES}
    assert found["README"] >= 5
    assert found["first_sweep"] >= 8
    assert sum(found.values()) > 80


def test_every_setting_that_a_page_names_exists():
    known = setting_names() | {"init.own_scale"}
    for page in PAGES:
        for span, line in spans(page):
            for name in re.findall(r"(?<![\w.])([a-z_]+(?:\.[a-z_]+)+)=", span):
                assert name in known, f"{page.name}:{line}: {name}"


@by_name(PAGES)
def test_every_block_names_its_language(page):
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{page.name}:{block.line}"
        if block.language == "python":
            compile(block.code, f"{page.name}:{block.line}", "exec")


@by_name(PAGES)
def test_every_python_example_is_run(page):
    """By name, by a test that reads this page."""
    names = snippets(page)
    for name in names:
        elsewhere = BY_OTHERS.get(page.stem)
        assert (page.stem, name) in HERE or (elsewhere and page.name in read(ROOT / elsewhere)), f"{page.name}: {name}"


def test_examples_with_their_output_print_it():
    found = 0
    for page in PAGES:
        names: dict = {}
        for block in blocks(page):
            if block.language == "pycon":
                test = doctest.DocTestParser().get_doctest(block.code, names, page.name, str(page), block.line)
                found += len(test.examples)
                runner = doctest.DocTestRunner()
                assert runner.run(test, clear_globs=False).failed == 0, f"{page.name}:{block.line}"
                names = test.globs
    assert found >= 8


def bert_batches(batches):
    from adarank.harness.models import tiny

    built = tiny("bert").build(2)
    words = built.tokenizer(["good film", "dull"], padding=True, return_tensors="pt")
    return built.model, [{**words, "labels": torch.tensor([1, 0])} for _ in range(batches)]


def example(page, name, **names):
    code = snippets(ROOT / page)[name]
    names = {"torch": torch, **names}
    exec(compile(code, f"{page} {name}", "exec"), names)
    return names


def test_the_readme_s_loop_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, batches = bert_batches(3)
    names = example("README.md", "loop", model=model, batches=batches)
    assert names["n"] == 4
    assert names["controller"].step == 3
    assert (tmp_path / "adapter" / "adapter.safetensors").is_file()


def test_the_readme_s_score_is_the_average_it_describes():
    model, batches = bert_batches(6)
    adapters = adarank.adapt(model, rank=2, targets=["query", "value"])
    score = example("README.md", "score")["gradient_size"](beta=0.5)
    schedule = adarank.schedules.cubic(initial=8, final=4, t_i=1, t_f=2, total=6)
    controller = adarank.RankController(adapters, score=score, schedule=schedule)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    controller.attach(optimizer)
    expected = torch.zeros(8)
    for batch in batches:
        model(**batch).loss.backward()
        controller.after_backward()
        sizes = [a.lam.grad.abs() + a.P.grad.abs().mean(1) + a.Q.grad.abs().mean(1) for a in adapters.values()]
        if controller.observes:
            expected = (expected + torch.cat(sizes)) / 2
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(controller.last_allocation.scores, expected)
    assert sum(adarank.ranks(model).values()) == 4


def test_the_translation_of_peft_s_loop_runs():
    model, batches = bert_batches(100)
    names = example("docs/from_peft.md", "adarank", model=model, batches=batches)
    assert sum(adarank.ranks(model).values()) == 8 * names["n"]


def test_the_readme_is_short_and_its_figures_are_those_of_the_findings():
    text = read(ROOT / "README.md")
    assert len(text.splitlines()) <= 120
    section = text.partition("## What we found")[2].partition("\n## ")[0]
    figures = set(re.findall(r"-?\d*\.\d+", section)) - {"1.5"}  # the assay's three margins, in points
    page = read(ROOT / "docs" / "findings.md")
    assert len(figures) >= 10
    assert {figure for figure in figures if not re.search(rf"(?<![\d.]){re.escape(figure)}(?!\d)", page)} == set()


def test_every_field_of_peft_s_config_has_a_translation():
    """The list equals the dataclass's fields, and the defaults of AdaLoRA's own fields are PEFT's."""
    peft = pytest.importorskip("peft")
    page = read(ROOT / "docs" / "from_peft.md")
    assert f"PEFT {peft.__version__}" in page
    rows = re.findall(r"^\| (`[^|]*`) \| (.*) \|$", page.partition("## Functions")[0], re.MULTILINE)
    named = [name for first, _ in rows for name in re.findall(r"`(\w+)`", first) if name != "AdaLoraConfig"]
    fields = {field.name: field.default for field in dataclasses.fields(peft.AdaLoraConfig)}
    assert sorted(named) == sorted(fields)
    own = inspect.get_annotations(peft.AdaLoraConfig)
    assert {first.strip("`"): rest.split(" | ")[0] for first, rest in rows if first.strip("`") in own} == {
        name: str(fields[name]) for name in own
    }


def test_the_files_of_the_tour_through_the_code_exist():
    page = read(ROOT / "docs" / "read_the_core.md")
    files = re.findall(r"`((?:adarank|analysis|experiments|tests)/[\w/]*(?:\.py)?/?)`", page)
    assert len(files) > 20
    assert [name for name in files if not (ROOT / name).exists()] == []
    for name in re.findall(r"`(_\w+|\w+\.\w+|\w+_\w+)`", page):
        if not name.endswith(".py"):
            where = [
                path for path in ROOT.glob("adarank/**/*.py") if re.search(rf"\b{name.split('.')[-1]}\b", read(path))
            ]
            assert where, f"{name} is nowhere in adarank/"


def test_the_api_page_has_every_public_name():
    page = read(ROOT / "docs" / "api.md")
    directives = re.findall(r"^::: (\S+)$", page, re.MULTILINE)
    for name in adarank.__all__:
        assert f"adarank.{name}" in directives or any(d.startswith(f"adarank.{name}.") for d in directives), name
    for directive in directives:
        module, _, last = directive.rpartition(".")
        assert last == "*" or hasattr(import_module(module), last), directive


def test_the_drawn_figures_show_the_committed_run(tmp_path):
    from adarank.runs.packed import allocations_of, read_record
    from experiments.docs_figures import EXAMPLE, RUN, panels_of, rank_moves, three_phases

    record = read_record(RUN)
    moments = panels_of(record)
    assert [step for step, _ in moments] == sorted(step for step, _ in moments)
    totals = [sum(ranks.values()) for _, ranks in moments]
    assert totals[0] == 12 * 36
    assert moments[-1][1] == allocations_of(record)[-1]["ranks"]
    assert totals[-1] == 8 * 36 == EXAMPLE.final
    texts = [text.get_text() for axes in rank_moves(record).axes for text in axes.texts]
    assert texts[-36:] == [str(rank) for rank in _in_grid(moments[-1][1])]
    assert "step 200: 371 triplets" in [text.get_text() for axes in three_phases().axes for text in axes.texts]
    readme = read(ROOT / "README.md")
    assert f"{record['config']['train']['steps']} steps" in readme


def _in_grid(ranks):
    from adarank.runs.modules import rank_grid

    return [int(rank) for row in rank_grid(ranks)[2] for rank in row]


needs_mkdocs = pytest.mark.skipif(
    find_spec("mkdocs") is None or find_spec("material") is None, reason="the extra docs is not installed"
)


@needs_mkdocs
def test_links_out_of_docs_lead_into_the_site():
    hook = runpy.run_path(str(ROOT / "docs" / "repository.py"))
    text = (
        "[log](../experiments/LOG.md#a) [loop](loops.md) [all](../experiments/results) `[c](../x.md)` [w](https://x.y)"
    )
    assert hook["rewritten"](text, "findings.md") == (
        "[log](repository/experiments/LOG.md#a) [loop](loops.md) all `[c](../x.md)` [w](https://x.y)",
        {"experiments/LOG.md"},
    )
    assert hook["rewritten"]("[home](../README.md) [probes](../docs/probes.md)", "repository/experiments/LOG.md")[
        0
    ] == ("[home](../../index.md) [probes](../../probes.md)")
    assert hook["rewritten"]("```python plain\nx\n```", "loops.md")[0] == "```python\nx\n```"


@needs_mkdocs
def test_a_notebook_becomes_a_page_with_its_outputs(tmp_path):
    hook = runpy.run_path(str(ROOT / "docs" / "repository.py"))
    printed = {"output_type": "stream", "text": ["two\n"]}
    drawn = {"output_type": "display_data", "data": {"image/png": "QUJD\n", "text/plain": "<Figure>"}}
    cells = [
        {"cell_type": "markdown", "source": ["# Tour\n", "Text."]},
        {"cell_type": "code", "source": ["print('two')"], "outputs": [printed, drawn]},
    ]
    (tmp_path / "tour.ipynb").write_text(json.dumps({"cells": cells}))
    image = "![output](data:image/png;base64,QUJD)"
    assert hook["notebook"](tmp_path / "tour.ipynb") == (
        f"# Tour\nText.\n\n```python\nprint('two')\n```\n\n```text\ntwo\n```\n\n{image}\n"
    )
    assert hook["uri_of"]("docs/tour.ipynb") == "tour.md"


@needs_mkdocs
def test_docstrings_become_lists_and_examples():
    hook = runpy.run_path(str(ROOT / "docs" / "docstrings.py"))
    text = "What it does.\n\nrank: at least 1,\n    at most 8. alpha: a number.\ninit(bank) -> buffers: makes them.\n\n"
    text += "Example: f(1) == 2.\n\nArgs:\n    x: a number.\n\nExample:\n    >>> 1"
    assert hook["readable"](text) == (
        "What it does.\n\n- `rank`: at least 1,\n  at most 8. alpha: a number.\n- `init(bank) -> buffers`: makes them.\n\n"
        "Example: f(1) == 2.\n\nArgs:\n    x: a number.\n\nExamples:\n    >>> 1"
    )


@needs_mkdocs
def test_the_site_builds_with_strict_links(tmp_path):
    """As `make docs` does; a warning is an error."""
    words = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stdout + done.stderr).strip() == ""
    api = (tmp_path / "site" / "api.html").read_text(encoding="utf-8")
    for name in ("adarank.adapt", "adarank.scores.adalora.adalora", "adarank.allocators.uniform.uniform"):
        assert f'id="{name}"' in api
    assert "<li><code>pruned_triplets</code>: " in api.replace("<p>", "")
    assert "<blockquote>" not in api  # what an example becomes that is not recognised
    assert not list((tmp_path / "site").rglob("__pycache__"))
    home = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert 'src="rank_moves.png"' in home
    assert 'href="repository/CONTRIBUTING.html#add-a-score-in-five-minutes"' in home
    assert (tmp_path / "site" / "repository" / "experiments" / "LOG.html").is_file()
