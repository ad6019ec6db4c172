"""The task built from WordNet's own file format: which glosses it keeps, and as which class."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import supersense

SCRIPT = Path(supersense.__file__)
NOUNS = """  1 This software and database is being provided to you
00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 | that which is perceived
00001930 04 n 01 leap 0 001 @ 00001740 n 0000 | a light jump; "he made a leap"; "a leap of faith"
00002137 28 n 01 hour 0 001 @ 00001740 n 0000 | a period of time; also: sixty minutes;
00002452 05 n 01 hare 0 001 @ 00001740 n 0000 | a light jump; "of another class, and the second with its gloss"
00002684 18 n 01 boss 0 001 @ 00001740 n 0000 | the "head" of a group
"""


def test_rows_are_glosses_without_examples_each_once_and_not_of_tops(tmp_path: Path) -> None:
    (tmp_path / "data.noun").write_text(NOUNS)
    assert supersense.rows(tmp_path) == [
        {"text": "a light jump", "label": "noun.act"},
        {"text": "a period of time; also: sixty minutes", "label": "noun.time"},
        {"text": 'the "head" of a group', "label": "noun.person"},
    ]


def test_the_splits_are_fixed_and_divide_the_rows() -> None:
    found = [{"text": str(i), "label": "noun.act"} for i in range(8000)]
    first, second = supersense.splits(found), supersense.splits(found)
    assert first == second
    assert {name: len(rows) for name, rows in first.items()} == {"dev": 2000, "test": 5000, "train": 1000}
    assert sorted(int(row["text"]) for rows in first.values() for row in rows) == list(range(8000))


def test_the_task_can_be_divided_anew_from_its_own_folder(tmp_path: Path, monkeypatch, capsys) -> None:
    found = [{"text": f"thing {i}", "label": "noun.act"} for i in range(3000)]
    (tmp_path / "task").mkdir()
    for name, part in zip(("train", "dev", "test"), (found[:1500], found[1500:2000], found[2000:]), strict=True):
        (tmp_path / "task" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))

    def call(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["supersense.py", str(tmp_path / "task"), str(tmp_path / "again"), *words])
        return supersense.main()

    assert call("--seed", "1", "--test", "700") == 0
    assert capsys.readouterr().out == "dev: 2,000 rows\ntest: 700 rows\ntrain: 300 rows\n"
    assert supersense.splits(found, 1, 700) == supersense.splits(found[::-1], 1, 700), (
        "whatever the order of the source"
    )
    lines = (tmp_path / "again" / "test.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == supersense.splits(found, 1, 700)["test"]
    assert call("--test", "700") == 2
    assert capsys.readouterr().err.startswith("error: --seed must differ from 0 where SOURCE is the task itself")
    assert call("--seed", "1", "--test", "1000") == 2
    assert capsys.readouterr().err == "error: --test must be from 1 to 999 (got 1,000)\n"


def test_a_folder_without_wordnet_is_one_sentence_and_status_2(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, SCRIPT, tmp_path, tmp_path / "out"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    asked = "a folder with WordNet's file data.noun, or with the task's train.jsonl, dev.jsonl, test.jsonl"
    assert done.stderr == f"error: SOURCE must be {asked} (got {tmp_path})\n"
    assert not (tmp_path / "out").exists()


def test_wordnet_3_gives_the_rows_that_were_made_independently() -> None:
    wordnet, shared = Path("/usr/share/wordnet"), os.environ.get("ADARANK_SHARED")
    if not (wordnet / "data.noun").is_file() or not shared:
        pytest.skip("needs Debian's wordnet-base and the folder ADARANK_SHARED")
    lines = (
        line for file in Path(shared, "data", "supersense").glob("*.jsonl") for line in file.open(encoding="utf-8")
    )
    given = {(row["text"], row["label"]) for row in map(json.loads, lines)}
    assert {(row["text"], row["label"]) for row in supersense.rows(wordnet)} == given
