import json
import math

import pytest

from adarank.runs.files import read_lines, read_object, write_json, write_text


def test_nothing_is_half_written(tmp_path):
    target = tmp_path / "a.json"
    write_json(target, {"x": 1})
    with pytest.raises(TypeError):
        write_json(target, {"x": object()})
    assert json.loads(target.read_text()) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_what_json_cannot_hold_becomes_null(tmp_path):
    write_json(tmp_path / "a.json", {"x": [math.nan, math.inf, 1.5], "y": {"z": -math.inf}})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [None, None, 1.5], "y": {"z": None}}


def test_a_failed_write_leaves_no_temporary_file(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        write_text(tmp_path / "folder", "x")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_without_indent_there_is_no_white_space(tmp_path):
    write_json(tmp_path / "a.json", {"x": [1, 2.5], "y": math.inf}, indent=None)
    assert (tmp_path / "a.json").read_text() == '{"x":[1,2.5],"y":null}\n'


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, ({}, "")),
        (b'{"x": 1}', ({"x": 1}, "")),
        (b"{", ({}, "a.json cannot be read")),
        (b"\xff", ({}, "a.json cannot be read")),
        (b"[1]", ({}, "a.json is not an object")),
    ],
)
def test_an_object_is_read_or_its_fault_is_named(tmp_path, content, found):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    assert read_object(tmp_path / "a.json") == found


def test_lines_that_hold_no_object_are_numbered(tmp_path):
    path = tmp_path / "a.jsonl"
    assert read_lines(path) == ([], [])
    path.write_bytes(b'{"x": 1}\n[2]\n{"x": \n\xff\n{"x": 3}\n{"x')
    assert read_lines(path) == ([{"x": 1}, {"x": 3}], [2, 3, 4, 6])
