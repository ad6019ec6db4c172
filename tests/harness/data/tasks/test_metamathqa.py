import json

import pytest

from adarank.errors import SettingError
from adarank.harness.data.tasks import hub
from adarank.harness.data.tasks import metamathqa as module
from adarank.harness.data.tasks.metamathqa import FILE, metamathqa

ROWS = [
    {"query": "What is 1 + 1?", "response": "Add.\n#### 2\nThe answer is: 2", "type": "GSM_Rephrased"},
    {"query": "Long?", "response": "x" * 1300, "type": "MATH_SV"},
    {"query": "What is 2 + 2?", "response": "The answer is: 4", "type": "MATH_SV"},
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / FILE).write_text(json.dumps(ROWS))
    (tmp_path / "GSM8K").mkdir()
    for split, count in (("train", 6), ("test", 2)):
        problems = [{"question": f"{split} {i}?", "answer": f"So.\n#### {i}"} for i in range(count)]
        (tmp_path / "GSM8K" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))
    return tmp_path


def test_it_trains_on_one_and_is_judged_by_the_other(folder):
    task = metamathqa(path=str(folder))
    assert task.train.prompt == ["Question: What is 1 + 1?\nAnswer:", "Question: What is 2 + 2?\nAnswer:"]
    assert task.train.references[1] == [" The answer is: 4"]
    assert (len(task.dev), task.test.prompt) == (3, ["Question: test 0?\nAnswer:", "Question: test 1?\nAnswer:"])
    assert (task.metrics, task.task_type) == (("loss", "final_answer"), "generate")
    limited = metamathqa(path=str(folder), limit=1)
    assert (len(limited.train), len(limited.dev), len(limited.test)) == (1, 1, 1)


def test_the_hub_s_rows_are_those_of_the_file(folder, monkeypatch):
    columns = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    local = metamathqa(path=str(folder))
    monkeypatch.setattr(hub, "download", lambda *_: {"train": columns})
    monkeypatch.setattr(module, "gsm8k", lambda *_, **__: local)
    assert metamathqa().fingerprint == local.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: (d / FILE).unlink(), "task.path must hold MetaMathQA-395K.json ({d}: "),
        (
            lambda d: (d / FILE).write_text('[{"query": "x"}]'),
            "MetaMathQA-395K.json (task.path={d}) must be a list of rows",
        ),
        (lambda d: (d / "GSM8K" / "test.jsonl").unlink(), "task.path must hold GSM8K's test.jsonl ({d}"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(folder, change, message):
    change(folder)
    with pytest.raises(SettingError) as error:
        metamathqa(path=str(folder))
    assert str(error.value).startswith(message.format(d=folder))
    assert "\n" not in str(error.value)
