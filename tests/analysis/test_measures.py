"""A file of experiments/probe.py that cannot be read is named, not passed over."""

import json

import pytest

from analysis.load import read_runs
from analysis.measures import READERS
from analysis.notes import notes
from analysis.tables import tables

WHOLE = {
    "probe.json": {"rise": [0.1, 0.2, 0.3, 0.4], "scores": {"adalora": [1, 2, 3, 4]}},
    "forgetting.json": {"stsb": {"before": 0.8, "after": 0.7}},
    "similarity.json": {"with": {"other-s1": {"a": {"sides": [4, 4], "input": [[0.1]], "output": [[0.2]]}}}},
}


def said(out):
    (table,) = tables(read_runs(out))
    return [note for note in notes(table) if "left out" in note]


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"rise": [0.1, null], "modules": {"a": {}}, "stsb": 3, "with": {"b": 1}}']
)
def test_a_damaged_file_is_named_with_its_run(tmp_path, write_run, name, text):
    run = write_run(tmp_path, "lora", 3)
    (run / name).write_text(text)
    assert said(tmp_path) == [f"{name} of lora 8, seed 3, cannot be read and is left out: {run.name}/{name}."]


def test_whole_files_and_missing_ones_are_not(tmp_path, write_run):
    run = write_run(tmp_path, "lora", 0)
    write_run(tmp_path, "lora", 1)
    for name, content in WHOLE.items():
        (run / name).write_text(json.dumps(content))
    assert said(tmp_path) == []
