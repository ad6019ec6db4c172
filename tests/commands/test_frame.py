"""adarank frame: the table that adarank.frame returns, in a file."""

import importlib.util
from pathlib import Path

import pandas
import pytest
from pandas.testing import assert_frame_equal

import adarank
from adarank.cli import main

RUNS = (
    Path(__file__).resolve().parents[2] / "experiments" / "results" / "controls" / "seeds" / "rotten_tomatoes" / "map"
)


@pytest.mark.parametrize("kind", [[], ["ranks"]])
def test_the_files_hold_the_table(tmp_path, capsys, kind):
    table = adarank.frame(RUNS, *kind)
    assert main(["frame", str(RUNS), *kind, "--csv", str(tmp_path / "t.csv")]) == 0
    said = f"{tmp_path / 't.csv'}: {len(table)} rows and {len(table.columns)} columns\n"
    assert capsys.readouterr().out == said
    back = pandas.read_csv(tmp_path / "t.csv")
    assert list(back.columns) == list(table.columns)
    assert_frame_equal(back[["run", "seed"]], table[["run", "seed"]])
    pytest.importorskip("pyarrow")
    assert main(["frame", str(RUNS), *kind, "--parquet", str(tmp_path / "t.parquet")]) == 0
    assert_frame_equal(pandas.read_parquet(tmp_path / "t.parquet"), table)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.csv", "t.parquet"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "exactly one of --csv FILE and --parquet FILE must be given (got neither)"),
        (["--csv", "a", "--parquet", "b"], "exactly one of --csv FILE and --parquet FILE must be given (got both)"),
        (["rank", "--csv", "a"], "kind must be one of runs, metrics, allocations, ranks, predictions (got rank)"),
        (["--csv", "{absent}/a"], "{absent}/a cannot be written (No such file or directory)"),
    ],
)
def test_what_cannot_be_written_is_one_sentence(tmp_path, capsys, words, said):
    absent = str(tmp_path / "absent")
    assert main(["frame", str(RUNS), *(word.format(absent=absent) for word in words)]) == 2
    assert capsys.readouterr().err == f"error: {said.format(absent=absent)}\n"


def test_parquet_without_pyarrow_is_refused(tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("adarank.commands.frame.find_spec", lambda name: None if name == "pyarrow" else find(name))
    assert main(["frame", str(RUNS), "--parquet", str(tmp_path / "a")]) == 2
    assert "needs the package pyarrow, which is not installed; install adarank[parquet], or choose --csv" in (
        capsys.readouterr().err
    )
