import os
import subprocess
import sys
import time

import pytest

from adarank.errors import SettingError
from adarank.harness.data.tasks.files import files
from adarank.harness.data.tasks.hub import hub


@pytest.fixture
def datasets(monkeypatch, tmp_path_factory):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return datasets


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.csv").write_text(f"text,label\ngood {split},1\nbad {split},0\n")
    return tmp_path


def test_a_folder_that_datasets_reads_gives_the_rows_that_files_gives(datasets, folder):
    task = hub(str(folder))
    assert task.test is not None
    assert (task.train.text, task.train.label.tolist(), task.labels) == (
        ["good train", "bad train"],
        [1, 0],
        ("0", "1"),
    )
    assert (task.dev.text[0], task.test.text[0]) == ("good validation", "good test")
    (folder / "validation.csv").rename(folder / "dev.csv")
    assert files(str(folder)).fingerprint == task.fingerprint
    assert datasets.config.HF_HUB_OFFLINE is True


def test_parquet_with_named_classes_keeps_their_order_and_leaves_out_an_unlabelled_test(datasets, tmp_path):
    features = datasets.Features(
        {"q": datasets.Value("string"), "a": datasets.Value("string"), "y": datasets.ClassLabel(names=["yes", "no"])}
    )
    for split, labels in {"train": [0, 1], "validation": [1, 0], "test": [-1, -1]}.items():
        rows = {"q": ["q1", "q2"], "a": ["a1", "a2"], "y": labels}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
    task = hub(str(tmp_path), text="q", pair="a", label="y", metric="f1", limit=1, max_length=32)
    assert (task.labels, task.train.pair, task.dev.label.tolist()) == (("yes", "no"), ["a1"], [1])
    assert (task.test, task.metrics, task.max_length) == (None, ("f1",), 32)


def test_floats_are_a_regression(datasets, folder):
    for split in ("train", "validation", "test"):
        (folder / f"{split}.csv").write_text("text,label\na,0.5\nb,1.5\n")
    assert hub(str(folder), test=None).metrics == ("pearson_spearman",)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dev": "valid"}, "task.dev=valid: task.name={d} has no split valid; its splits are "),
        (
            {"test": "tests"},
            "task.test=tests: task.name={d} has no split tests; its splits are train, validation, test; task.test=null",
        ),
        (
            {"text": "txt"},
            "task.text=txt: split train (task.name={d}) has no column txt; its columns are",
        ),
        ({"config": "zz"}, "task.name={d} could not be loaded (BuilderConfig 'zz' not found"),
        (
            {"metric": "pearson", "label": "text"},
            "task.metric must be one of accuracy, f1, matthews for labels that are classes",
        ),
        ({"metric": "f9"}, "task.metric must be one of accuracy, f1,"),
        ({"limit": 0}, "task.limit must be at least 1, or null"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(datasets, folder, settings, message):
    with pytest.raises(SettingError) as error:
        hub(str(folder), **settings)
    assert str(error.value).startswith(message.format(d=folder))
    assert "\n" not in str(error.value)


def test_offline_it_says_what_was_tried(datasets):
    with pytest.raises(SettingError) as error:
        hub("nobody/nothing")
    message = str(error.value)
    assert message.startswith("task.name=nobody/nothing could not be loaded (")
    assert "from a folder of that name, the Hugging Face hub and the cache of datasets" in message
    assert message.endswith("use a data set's name while the hub can be reached, or task=files task.path=FOLDER")


@pytest.mark.slow
def test_a_hub_that_refuses_connections_costs_seconds(tmp_path):
    pytest.importorskip("datasets")
    code = "from adarank.harness.data.tasks.hub import hub; hub('nobody/nothing')"
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    started = time.monotonic()
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "SettingError: task.name=nobody/nothing could not be loaded (the hub does not answer) from" in out.stderr
    assert "Retrying" not in out.stderr
    assert time.monotonic() - started < 20  # the library by itself: 23 s and more


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SettingError) as error:
        hub("imdb")
    assert str(error.value) == (
        "task.name=imdb needs the library datasets, which is not installed; pip install 'adarank[hub]', "
        "or use a data set's name while the hub can be reached, or task=files task.path=FOLDER"
    )
