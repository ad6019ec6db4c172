import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adarank.errors import SettingError
from adarank.harness.data.tasks.readers import (
    READERS,
    comma_separated,
    delimited,
    folder,
    holds,
    json_lines,
    tab_separated,
)


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def test_csv_keeps_quotes_commas_breaks_and_words_that_look_like_nothing(tmp_path):
    file = write(tmp_path / "x.csv", '\ufefftext,label\r\n"a, ""b""\nc",1\r\nNA,null\r\n\r\n')
    assert comma_separated(file, "x") == {"text": ['a, "b"\nc', "NA"], "label": ["1", "null"]}


def test_tsv_takes_quotes_as_they_are(tmp_path):
    file = write(tmp_path / "x.tsv", 'text\tlabel\n"open\t1\nshut"\t0\n')
    assert tab_separated(file, "x") == {"text": ['"open', 'shut"'], "label": ["1", "0"]}


def test_without_a_header_columns_are_numbered_as_far_as_every_row_has_them(tmp_path):
    file = write(tmp_path / "x.tsv", "a\t1\tmore\nb\t2\n")
    found = delimited(file, "x", "\t", quoted=False, header=False)
    assert found == {"column 1": ["a", "b"], "column 2": ["1", "2"]}
    assert delimited(write(tmp_path / "e.tsv", ""), "e", "\t", quoted=False, header=False) == {}


def test_torn_rows_are_left_out_where_that_is_asked_for(tmp_path):
    file = write(tmp_path / "x.tsv", "text\tlabel\na\t1\nb\nc\t0\n")
    assert delimited(file, "x", "\t", quoted=False, torn=True) == {"text": ["a", "c"], "label": ["1", "0"]}


def test_a_cell_may_be_longer_than_the_csv_module_s_limit(tmp_path):
    long = "word " * 30_000
    assert comma_separated(write(tmp_path / "x.csv", f"text\n{long}\nb\n"), "x") == {"text": [long, "b"]}


def test_lines_may_end_in_a_carriage_return(tmp_path):
    (tmp_path / "x.csv").write_bytes(b'text,label\ra,1\r"b\rc",2\r')
    assert comma_separated(tmp_path / "x.csv", "x") == {"text": ["a", "b\rc"], "label": ["1", "2"]}


@pytest.mark.parametrize("form", ["{rows}", '{{"version": 2, "data": {rows}}}'])
def test_json_is_a_list_or_has_one_as_data(tmp_path, form):
    rows = '[{"a": 1, "b": "x"}, {"b": "\u00fc"}]'
    assert READERS[".json"](write(tmp_path / "x.json", form.format(rows=rows)), "x") == {
        "a": [1, None],
        "b": ["x", "ü"],
    }


def test_json_lines(tmp_path):
    file = write(tmp_path / "x.jsonl", '\ufeff{"text": "a", "label": 1}\n\n{"label": 0.5, "more": null}\n')
    assert json_lines(file, "x") == {"text": ["a", None], "label": [1, 0.5], "more": [None, None]}


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)


@given(st.lists(st.tuples(cells, cells.map(lambda c: "x" + c)), min_size=1, max_size=5))
def test_every_format_reads_back_what_was_written(tmp_path_factory, rows):
    import pandas

    tmp_path = tmp_path_factory.mktemp("formats")
    frame = pandas.DataFrame(rows, columns=["text", "label"])
    frame.to_csv(tmp_path / "x.csv", index=False, lineterminator="\r\n")
    frame.to_json(tmp_path / "x.jsonl", orient="records", lines=True)
    frame.to_parquet(tmp_path / "x.parquet")
    for suffix in (".csv", ".jsonl", ".parquet"):
        assert READERS[suffix](tmp_path / f"x{suffix}", "x") == frame.to_dict("list"), suffix


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "x.csv",
            'text,label\n"a,1\n',
            "x: line 2 cannot be read (unexpected end of data); the file must have fields separated by commas",
        ),
        (
            "x.csv",
            "text,label\na,1,2\n",
            "x: row 1 has 3 fields, but the header has 2; the file must have fields separated by commas",
        ),
        (
            "x.tsv",
            "text\tlabel\na\t1\nb\n",
            "x: row 2 has 1 fields, but the header has 2; the file must have fields separated by tabs and no",
        ),
        ("x.csv", "text,text\na,b\n", "x has two columns named 'text'; column names must differ"),
        ("x.jsonl", '{"a": 1}\n{oops\n', "x: line 2 must be a JSON object ("),
        ("x.jsonl", "[1]\n", "x: line 1 must be a JSON object (got list)"),
        ("x.parquet", "oops", "x must be a table in Parquet ("),
        (
            "x.json",
            '{"a": 1}\n{"a": 2}\n',
            "x must be JSON (Extra data: line 2 column 1 (char 9)); name a file with one",
        ),
        ("x.json", '{"rows": []}', 'x must be a list of JSON objects, or {"data": [objects]}'),
        ("x.json", '[{"a": 1}, 2]', "x: row 2 must be a JSON object (got int)"),
        ("x.csv.gz", "text,label\n", "x cannot be decompressed (Not a gzipped file"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, text, message):
    file = write(tmp_path / name, text)
    with pytest.raises(SettingError) as error:
        READERS["".join(file.suffixes)](file, "x")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.jsonl", "x.json"])
def test_another_encoding_is_refused(tmp_path, name):
    file = write(tmp_path / name, '{"text": "e"}\n{"text": "\xe9"}\n', encoding="latin-1")
    with pytest.raises(SettingError, match=r"^x: line 2 must be UTF-8 text \(.* can't decode byte 0xe9"):
        READERS[file.suffix](file, "x")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SettingError, match=r"^x cannot be read without pyarrow; pip install 'adarank\[parquet\]'$"):
        READERS[".parquet"](tmp_path / "x.parquet", "x")


def test_folders(tmp_path, monkeypatch):
    with pytest.raises(
        SettingError, match=r"^task\.path must be a folder with the task's files \(.*/none does not exist\)$"
    ):
        folder(str(tmp_path / "none"))
    with pytest.raises(SettingError, match=r"^task\.path must be a folder .*/f is a file\)"):
        folder(str(write(tmp_path / "f", "")))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder("~") == tmp_path
    (tmp_path / "d").mkdir()
    assert holds(tmp_path) == "it holds d/, f"
    assert holds(tmp_path / "d") == "it is empty"
