import json

import pytest

from adarank.errors import SettingError
from adarank.harness.data.tasks.files import files

CSV = "text,label\ngood,1\nbad,0\nfine,1\n"


@pytest.fixture
def data(tmp_path):
    for split in ("train", "dev"):
        (tmp_path / f"{split}.csv").write_text(CSV)
    return tmp_path


def test_a_folder_of_csv(data):
    task = files(str(data))
    assert (task.name, task.labels, task.metrics, task.max_length) == (data.name, ("0", "1"), ("accuracy",), 128)
    assert (task.train.text, task.train.pair, task.train.label.tolist()) == (["good", "bad", "fine"], None, [1, 0, 1])
    assert task.test is None
    (data / "test.csv").write_text(CSV)
    task = files(str(data), metric="f1", limit=2, max_length=32)
    assert task.test is not None
    assert (len(task.train), len(task.test), task.metrics, task.max_length) == (2, 2, ("f1",), 32)


def test_every_format_gives_the_same_task(tmp_path):
    import pandas

    frame = pandas.DataFrame({"a": ["x", "y"], "b": ["p", 'q"'], "y": [0, 1]})
    writers = {
        "csv": lambda path: frame.to_csv(path, index=False),
        "tsv": lambda path: path.write_text('a\tb\ty\nx\tp\t0\ny\tq"\t1\n'),
        "jsonl": lambda path: path.write_text("".join(json.dumps(r) + "\n" for r in frame.to_dict("records"))),
        "PARQUET": lambda path: frame.to_parquet(path),
        "json": lambda path: frame.to_json(path, orient="records"),
        "csv.gz": lambda path: frame.to_csv(path, index=False),
        "jsonl.gz": lambda path: frame.to_json(path, orient="records", lines=True),
    }
    found = set()
    for suffix, writer in writers.items():
        folder = tmp_path / suffix
        folder.mkdir()
        for split in ("train", "dev"):
            writer(folder / f"{split}.{suffix}")
        task = files(str(folder), text="a", pair="b", label="y")
        assert task.train.pair == ["p", 'q"']
        found.add((task.fingerprint, task.labels))
    assert len(found) == 1


def test_regression(tmp_path):
    for split in ("train", "dev"):
        (tmp_path / f"{split}.tsv").write_text("text\tlabel\na\t0.5\nb\t3\n")
    task = files(str(tmp_path))
    assert (task.labels, task.metrics, task.train.label.tolist()) == ((), ("pearson_spearman",), [0.5, 3.0])
    assert files(str(tmp_path), metric="spearman").metrics == ("spearman",)
    with pytest.raises(SettingError, match=r"task\.metric must be one of pearson, .* \(got matthews\)"):
        files(str(tmp_path), metric="matthews")


def test_whole_numbers_are_classes_however_they_are_spelled(data):
    expected = files(str(data))
    (data / "dev.csv").write_text(CSV.replace("1\n", "1.0\n").replace(",0\n", ",0.0\n"))
    task = files(str(data))
    assert (task.labels, task.metrics) == (("0", "1"), ("accuracy",))
    assert task.fingerprint == expected.fingerprint
    task = files(str(data), metric="pearson")  # which makes targets of them
    assert (task.labels, task.train.label.dtype, task.dev.label.tolist()) == ((), "float32", [1, 0, 1])


@pytest.mark.parametrize("text", ["text\nnew\nold\n", "text,label\nnew,\nold,\n"])
def test_a_test_without_labels_is_there_to_be_predicted(data, text):
    without = files(str(data))
    (data / "test.csv").write_text(text)
    task = files(str(data), limit=1)
    assert task.test is None
    assert (task.unlabelled_test.text, task.unlabelled_test.label.tolist()) == (["new"], [-1])
    assert files(str(data)).fingerprint != without.fingerprint


@pytest.mark.parametrize("name", ["text", "label"])
def test_half_a_character_is_named_with_its_file_and_row(data, name):
    row = {"text": "fine", "label": "good"}
    rows = [row, {**row, name: "cut off \ud83d"}, {**row, "label": "bad"}]
    (data / "train.csv").unlink()
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SettingError) as error:
        files(str(data))
    assert str(error.value) == (
        f"train.jsonl (task.path={data}): {name} in row 2 contains half of a character ('\\ud83d'), which no tokeniser "
        "can read; correct or remove the row"
    )


def test_the_fingerprint_follows_the_rows_and_not_the_path(data, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    for split in ("train", "dev"):
        (other / f"{split}.csv").write_text(CSV)
    assert files(str(data)).fingerprint == files(str(other)).fingerprint
    (other / "dev.csv").write_text(CSV.replace("fine", "nice"))
    assert files(str(data)).fingerprint != files(str(other)).fingerprint


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (
            lambda d: (d / "train.csv").unlink(),
            {},
            "task.path={d} has no train file; it must hold train.csv or train.tsv or",
        ),
        (
            lambda d: (d / "dev.csv").rename(d / "validation.csv"),
            {},
            "task.path={d} has no dev file; it must hold dev.csv or dev.tsv or dev.jsonl or dev.json or dev.parquet, "
            "of which all but the last may be compressed as .gz (it holds train.csv, validation.csv)",
        ),
        (
            lambda d: (d / "dev.tsv").write_text(""),
            {},
            "task.path={d} must have one file per split (it has dev.csv, dev.tsv for dev)",
        ),
        (
            lambda d: (d / "dev.csv").write_text(""),
            {},
            "dev.csv (task.path={d}) has no rows; every split needs at least one",
        ),
        (lambda d: (d / "dev.csv").write_text("text,label\n"), {}, "dev.csv (task.path={d}) has no rows"),
        (
            None,
            {"text": "texts"},
            "task.text=texts: train.csv (task.path={d}) has no column texts; its columns are text,",
        ),
        (
            lambda d: (d / "train.csv").write_text("text,label\na,0\nb,\n"),
            {},
            "train.csv (task.path={d}): label is missing in row 2; every row needs a value",
        ),
        (
            lambda d: (d / "dev.csv").write_text("text,label\na,0\nb,2\n"),
            {},
            "dev.csv (task.path={d}): the label 2 of row 2 does not occur in train, whose labels are 0, 1",
        ),
        (
            lambda d: (d / "test.csv").write_text("text,label\na,7\n"),
            {},
            "test.csv (task.path={d}): the label 7 of row 1 does not occur in train, whose labels are 0, 1",
        ),
        (
            lambda d: (d / "train.csv").write_text("text,label\na,0\nb,0\n"),
            {},
            "train.csv (task.path={d}): every label is 0; there must be at least two classes",
        ),
        (
            None,
            {"metric": "matthew"},
            "task.metric must be one of accuracy, f1, matthews, pearson, spearman, pearson_spearman (got matthew)",
        ),
        (
            lambda d: [(d / f"{split}.csv").write_text("text,label\na,no\nb,yes\n") for split in ("train", "dev")],
            {"metric": "pearson"},
            "task.metric must be one of accuracy, f1, matthews for labels that are classes (words) (got pearson); or "
            "write",
        ),
        (
            lambda d: (d / "dev.csv").write_text("text,label\na,0\nb,0.5\n"),
            {},
            "dev.csv (task.path={d}): the label '0.5' of row 2 does not occur in train, whose labels are 0, 1",
        ),
        (
            lambda d: (d / "dev.csv").write_text("text,label\na,0\nb,bad\n"),
            {},
            "dev.csv (task.path={d}): the label 'bad' of row 2 does not occur in train, whose labels are 0, 1",
        ),
        (
            lambda d: (
                (d / "train.csv").write_text("text,label\na,0.5\n")
                and (d / "test.csv").write_text("text,label\na,no\n")
            ),
            {},
            "test.csv (task.path={d}): the label 'no' of row 1 must be a number, like those of train",
        ),
        (
            lambda d: (d / "test.csv").write_text("text,label\na,0\nb,\n"),
            {},
            "test.csv (task.path={d}): label is missing in row 2; every row needs a value",
        ),
        (None, {"limit": 0}, "task.limit must be at least 1, or null"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(data, change, settings, message):
    if change:
        change(data)
    with pytest.raises(SettingError) as error:
        files(str(data), **settings)
    assert str(error.value).startswith(message.format(d=data))
    assert "\n" not in str(error.value)
