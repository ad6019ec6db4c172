"""The command: it measures what is missing, writes after each cell, continues, and refuses what it cannot use."""

import json

import pytest

from experiments.pages import MARKER
from experiments.rankbench import measure, read, run
from experiments.rankbench.settings import parse

SETTING = "network,ranks=4x2+2x2"
QUICK = ["--setting", SETTING, "--method", "adalora", "full", "--steps", "2"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """What the quick command wrote with one seed."""
    target = tmp_path_factory.mktemp("rankbench") / "found.json"
    assert run.main([*QUICK, "--seeds", "1", "--json", str(target)]) == 0
    return target


@pytest.fixture
def copy(file, tmp_path):
    target = tmp_path / "found.json"
    target.write_bytes(file.read_bytes())
    return target


def test_the_record_holds_the_truth_the_cells_and_why_others_were_skipped(file):
    held = json.loads(file.read_text())["settings"][SETTING]
    assert len(held["modules"]) == len(held["planted"]["0"]) == 12
    assert sum(held["planted"]["0"]) == 12
    assert set(held["cells"]["1"]) == {"lora", "oracle", "adalora"}
    assert held["skipped"] == {"full": "it has no adapter"}
    cell = held["cells"]["1"]["adalora"]
    assert str(cell["rate"]) in cell["dev"]
    assert sum(cell["seeds"]["0"]["ranks"]) == 12
    assert cell["seeds"]["0"]["loss"] > 0


def test_the_same_command_trains_nothing_again_and_prints_the_same_table(copy, monkeypatch, capsys):
    monkeypatch.setattr(measure, "train", None)
    before = json.loads(copy.read_text())
    assert run.main([*QUICK, "--seeds", "1", "--json", str(copy)]) == 0
    assert json.loads(copy.read_text()) == before
    assert read.table(before, SETTING, 1) in capsys.readouterr().out


def test_a_further_seed_is_added_to_what_is_there(copy, capsys):
    before = json.loads(copy.read_text())["settings"][SETTING]["cells"]["1"]
    assert run.main([*QUICK, "--seeds", "2", "--json", str(copy)]) == 0
    after = json.loads(copy.read_text())["settings"][SETTING]
    for case, cell in after["cells"]["1"].items():
        assert cell["seeds"]["0"] == before[case]["seeds"]["0"]
        assert (cell["rate"], len(cell["seeds"])) == (before[case]["rate"], 2)
    assert set(after["planted"]) == {"0", "1"}
    assert "full skipped: it has no adapter" in capsys.readouterr().out


def test_the_number_of_seeds_is_that_of_the_base_unless_it_is_given():
    cells = [(parse(f"{base},ranks=2"), 1, "lora") for base in ("network", "minilm_l6", "smollm2_135m")]
    empty = {"settings": {}}
    assert [len(job.seeds) for job in run.pending(empty, cells, None, None)] == [10, 5, 3]
    assert [len(job.seeds) for job in run.pending(empty, cells, 2, None)] == [2, 2, 2]


def test_a_run_that_is_stopped_keeps_its_finished_cells(tmp_path, monkeypatch):
    work = run.work

    def stopped(job):
        if job.case == "adalora":
            raise KeyboardInterrupt
        return work(job)

    monkeypatch.setattr(run, "work", stopped)
    target = tmp_path / "found.json"
    with pytest.raises(KeyboardInterrupt):
        run.main([*QUICK, "--seeds", "1", "--json", str(target)])
    assert set(json.loads(target.read_text())["settings"][SETTING]["cells"]["1"]) == {"lora", "oracle"}


def test_read_trains_nothing_and_shows_what_is_there(copy, monkeypatch, capsys):
    monkeypatch.setattr(measure, "train", None)
    assert run.main(["--read", "--setting", SETTING, "linear", "--steps", "2", "--json", str(copy)]) == 0
    assert capsys.readouterr().out.count("| case |") == 1


@pytest.mark.slow
def test_two_processes_find_what_one_finds_with_references_at_the_rank_that_a_method_needed(tmp_path):
    words = ["--setting", SETTING, "--method", "increlora", "--steps", "3", "--seeds", "1", "--json"]
    files = [tmp_path / f"{jobs}.json" for jobs in (1, 2)]
    for jobs, target in enumerate(files, start=1):
        assert run.main([*words, str(target), "--jobs", str(jobs)]) == 0
    one, two = (json.loads(target.read_text())["settings"][SETTING] for target in files)
    assert one == two
    assert set(one["cells"]["2"]) == {"lora", "oracle"}
    assert one["cells"]["1"]["increlora"]["rank"] == 2


def test_all_is_every_method_and_scores_every_score():
    assert run.expand(["all"]) == run.options("method")
    assert run.expand(["lora", "scores"])[:2] == ["lora", "adalora, score=adalora"]
    assert len(run.expand(["scores"])) == len(run.options("score"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--setting", "nosuch"], "--setting must be one of planted, linear"),
        (["--setting", SETTING, "--budget", "0.5"], "--budget must give network's 12 modules a whole mean rank"),
        (["--setting", "nosuch,ranks=2x2"], "nosuch"),
        (["--method", "nosuch"], "--method must be among all, scores, controls, oracle, adadora, adalora"),
        (["--seeds", "0"], "--seeds must be a whole number of at least 1 (got 0)"),
        (["--jobs", "0"], "--jobs must be a whole number of at least 1 (got 0)"),
        (["--json", "/nowhere/found.json"], "--json must lie in a folder that exists (got /nowhere/found.json)"),
        (["--json", __file__], "--json must be a file that this program wrote, or a new one"),
    ],
)
def test_what_cannot_be_used_is_one_sentence_and_exit_2(words, message, tmp_path, capsys):
    words = words if "--json" in words else [*words, "--json", str(tmp_path / "new.json")]
    assert run.main(words) == 2
    found = capsys.readouterr()
    assert message in found.err
    assert found.err.startswith("error: ")
    assert found.err.count("\n") == 1
    assert not found.out


def test_the_figure_needs_its_cells(copy, capsys):
    words = [
        "--read",
        "--setting",
        SETTING,
        "--steps",
        "2",
        "--json",
        str(copy),
        "--figure",
        str(copy.parent / "a.png"),
    ]
    assert run.main(words) == 2
    assert "error: --figure needs cells of the group phase for adalora" in capsys.readouterr().err


def test_the_tables_of_a_page_are_replaced_and_nothing_else(copy, capsys):
    page = copy.parent / "page.md"
    page.write_text(f"before\n{MARKER}\nold\n{MARKER}\nafter\n")
    assert run.main(["--read", "--setting", SETTING, "--steps", "2", "--json", str(copy), "--page", str(page)]) == 0
    record = json.loads(copy.read_text())
    tables = read.summary(record, [SETTING], "adalora") + "\n" + read.table(record, SETTING, 1)
    assert page.read_text() == f"before\n{MARKER}\n\n{tables}\n{MARKER}\nafter\n"
    page.write_text("no tables")
    assert run.main(["--read", "--setting", SETTING, "--steps", "2", "--json", str(copy), "--page", str(page)]) == 2
    assert "page.md must hold the line <!-- tables --> twice (got 0)" in capsys.readouterr().err


def test_reading_a_pretrained_base_s_tables_does_not_load_it(copy, monkeypatch, capsys):
    record = json.loads(copy.read_text())
    record["settings"]["minilm_l6,ranks=4x2+2x2"] = record["settings"].pop(SETTING)
    copy.write_text(json.dumps(record))
    monkeypatch.setattr(measure, "module_count", None)
    words = ["--read", "--setting", "minilm_l6,ranks=4x2+2x2", "--steps", "2", "--json", str(copy)]
    assert run.main(words) == 0
    assert "minilm_l6,ranks=4x2+2x2: 12 triplets, 12 planted, 1 seed**" in capsys.readouterr().out
