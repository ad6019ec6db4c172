import json

import pytest

from adarank.errors import SettingError
from adarank.harness.data.tasks import hub
from adarank.harness.data.tasks import summaries as module
from adarank.harness.data.tasks.summaries import summaries

ROWS = [{"document": "One.", "summary": "1"}, {"document": "Two.", "summary": "2"}]


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def test_a_folder(folder):
    task = summaries("xsum", path=str(folder), beams=3, limit=1, prefix="summarize: ")
    assert (task.name, task.task_type, task.max_length) == ("xsum", "seq2seq", 768)
    assert (task.train.prompt, task.train.references) == (["summarize: Two."], [["2"]])
    assert task.options == {"max_new_tokens": 64, "generate_rows": None, "beams": 3}
    assert task.metrics == ("loss", "rouge1", "rouge2", "rougeL", "rougeLsum")
    assert task.test is not None
    (folder / "test.jsonl").unlink()
    assert summaries("xsum", path=str(folder)).test is None


def test_the_hub_s_rows_are_those_of_the_files(folder, monkeypatch):
    class Rows:
        column_names = ("document", "summary", "id")

        def __getitem__(self, name):
            return ["1", "2"] if name == "id" else [row[name] for row in ROWS]

    asked = []
    splits = dict.fromkeys(("train", "validation", "test"), Rows())
    monkeypatch.setattr(hub, "download", lambda *given: asked.append(given[:3]) or splits)
    assert summaries("xsum").fingerprint == summaries("xsum", path=str(folder)).fingerprint
    summaries("cnn_dailymail", text="document", summary="summary")
    assert asked == list(module.HUB.values())


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (lambda d: (d / "dev.jsonl").unlink(), {}, "task.path={d} has no dev file; it must hold dev.csv or"),
        (None, {"text": "documents"}, "task.text=documents: train.jsonl (task.path={d}) has no column documents; its"),
        (None, {"summary": "abstract"}, "task.summary=abstract: train.jsonl (task.path={d}) has no column abstract"),
        (None, {"beams": 0}, "task.beams must be at least 1, which is greedy (got 0)"),
        (None, {"limit": 0}, "task.limit must be at least 1 (got 0)"),
        (
            lambda d: (d / "dev.jsonl").write_text('{"document": "x", "summary": ""}'),
            {},
            "dev.jsonl (task.path={d}): the",
        ),
    ],
)
def test_what_cannot_be_used_is_one_sentence(folder, change, settings, message):
    if change:
        change(folder)
    with pytest.raises(SettingError) as error:
        summaries("xsum", path=str(folder), **settings)
    assert str(error.value).startswith(message.format(d=folder))
    assert "\n" not in str(error.value)
