import json

import pytest

from adarank.errors import SettingError
from adarank.harness.data.tasks.base import hold_out
from adarank.harness.data.tasks.questions import squad
from tests.harness.data.tasks.squad_folder import CONTEXT, ROWS, write


def test_the_official_files(tmp_path):
    for version in ("v1.1", "v2.0"):
        write(tmp_path, version)
    first, second = (squad(name, path=str(tmp_path)) for name in ("squad", "squad_v2"))
    assert (len(first.train), len(second.train), first.test) == (3, 4, None)
    assert first.metrics == ("f1", "exact_match")
    assert second.metrics == ("f1", "exact_match", "best_f1", "best_exact_match")
    assert second.train.question == [question for question, _ in ROWS]
    assert second.train.context == [CONTEXT] * 4
    assert second.train.answers == [answers for _, answers in ROWS]
    assert second.train.starts[0] == [12, 15]
    assert first.options == {"stride": 128, "longest_answer": 30, "none_allowed": False}
    assert first.fingerprint != second.fingerprint
    assert len(squad("squad_v2", path=str(tmp_path), limit=2).dev) == 2
    assert squad("squad", path=str(tmp_path), max_length=90, stride=7).options["stride"] == 7


def test_rows_held_out_keep_their_contexts_and_answers(tmp_path):
    whole = squad("squad_v2", path=str(write(tmp_path, "v2.0")))
    cut = hold_out(whole, 1)
    assert (len(cut.train), len(cut.dev), cut.test) == (3, 1, whole.dev)
    rows = {q: (c, a, s) for part in (cut.train, cut.dev) for q, c, a, s in zip(*vars(part).values(), strict=True)}
    assert rows == {q: (c, a, s) for q, c, a, s in zip(*vars(whole.train).values(), strict=True)}


def spoil(folder, change):
    file = folder / "dev-v1.1.json"
    content = json.loads(file.read_text())
    change(content["data"][0]["paragraphs"][0]["qas"][1])
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (
            lambda d: (d / "dev-v1.1.json").unlink(),
            {},
            "task.path must hold SQuAD's official dev-v1.1.json ({d}: ",
        ),
        (
            lambda d: (d / "dev-v1.1.json").write_text("[1]"),
            {},
            "dev-v1.1.json (task.path={d}) must have SQuAD's layout",
        ),
        (lambda d: (d / "dev-v1.1.json").write_text('{"data": []}'), {}, "dev-v1.1.json (task.path={d}) has no rows"),
        (
            lambda d: spoil(d, lambda row: row["answers"][0].update(answer_start=3)),
            {},
            "dev-v1.1.json (task.path={d}): the context of row 2 does not have the answer '20%' at character 3",
        ),
        (
            lambda d: spoil(d, lambda row: row.update(answers=[])),
            {},
            "task=squad: row 2 of dev has no answer; use task=squad_v2",
        ),
        (None, {"stride": 200}, "task.stride must be from 0 to 192, half of task.max_length (got 200)"),
        (None, {"longest_answer": 0}, "task.longest_answer must be at least 1 token (got 0)"),
        (None, {"limit": 0}, "task.limit must be at least 1, or null"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(tmp_path, change, settings, message):
    write(tmp_path, "v1.1")
    if change:
        change(tmp_path)
    with pytest.raises(SettingError) as error:
        squad("squad", path=str(tmp_path), **settings)
    assert str(error.value).startswith(message.format(d=tmp_path))
    assert "\n" not in str(error.value)


def test_without_the_hub_it_says_what_to_do(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(SettingError) as error:
        squad("squad_v2")
    assert str(error.value).startswith("task=squad_v2 without task.path: rajpurkar/squad_v2 could not be loaded (")
    assert str(error.value).endswith("use task.path=FOLDER with train-v2.0.json and dev-v2.0.json")


def test_the_hub_s_rows_are_those_of_the_files(monkeypatch, tmp_path):
    """The library's form of a row, as rajpurkar/squad has it."""
    from adarank.harness.data.tasks import hub

    rows = [
        {
            "id": str(i),
            "title": "Amazon",
            "context": CONTEXT,
            "question": f" {question}",
            "answers": {"text": answers, "answer_start": [CONTEXT.index(text) for text in answers]},
        }
        for i, (question, answers) in enumerate(ROWS)
    ]
    monkeypatch.setattr(hub, "download", lambda *_: {"train": rows, "validation": rows})
    local = squad("squad_v2", path=str(write(tmp_path, "v2.0")))
    assert squad("squad_v2").fingerprint == local.fingerprint
