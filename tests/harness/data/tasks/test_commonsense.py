"""LLM-Adapters' tasks: rows, prompts, the suite's rule by its definition, accuracies by loops, a run of two tasks."""

import json
import math
import random

import pytest

from adarank.errors import SettingError
from adarank.harness.data.metrics import texts as text_metrics
from adarank.harness.data.tasks.commonsense import commonsense
from tests.experiments.test_run import inside

FORMS = {
    "boolq": ["true", "false"],
    "piqa": ["solution1", "solution2"],
    "social_i_qa": [f"answer{i}" for i in range(1, 6)],
    "hellaswag": [f"ending{i}" for i in range(1, 5)],
    "winogrande": ["option1", "option2"],
    "ARC-Easy": [f"answer{i}" for i in range(1, 6)],
    "ARC-Challenge": [f"answer{i}" for i in range(1, 6)],
    "openbookqa": [f"answer{i}" for i in range(1, 6)],
}


def row(task, number):
    answer = FORMS[task][number % len(FORMS[task])]
    text = f"Please choose, {task} {number}\n\nAnswer format: {'/'.join(FORMS[task])}"
    return {"instruction": text, "input": "", "output": f"the correct answer is {answer}", "answer": answer}


def write(folder, sizes):
    for task, count in sizes.items():
        (folder / task).mkdir(parents=True, exist_ok=True)
        for split, rows in (("train", count), ("test", 4)):
            (folder / task / f"{split}.json").write_text(json.dumps([row(task, i) for i in range(rows)]))
    return str(folder)


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "data", {"boolq": 20, "ARC-Easy": 30, "winogrande": 10})


def test_tasks_take_turns_and_dev_is_carved_from_each(folder):
    task = commonsense(folder)
    assert task.name == "commonsense"
    assert task.metrics == ("loss", "accuracy", "accuracy_boolq", "accuracy_winogrande", "accuracy_ARC-Easy")
    assert (len(task.train), len(task.dev), len(task.test)) == (60 - 6, 2 + 3 + 1, 12)
    assert {part: task.dev.part.count(part) for part in FORMS if part in task.dev.part} == {
        "boolq": 2, "winogrande": 1, "ARC-Easy": 3,
    }  # fmt: skip
    assert task.test.part == ["boolq", "winogrande", "ARC-Easy"] * 4
    for part, prompt, references in zip(task.train.part, task.train.prompt, task.train.references, strict=True):
        number = int(prompt.split(part)[1].split("\n")[0])
        assert prompt == (
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
            f"\n\n### Instruction:\n{row(part, number)['instruction']}\n\n### Response:\n"
        )
        assert references == [row(part, number)["output"]]
    assert not set(task.train.prompt) & set(task.dev.prompt)
    assert commonsense(folder, limit=7).test.part == [
        "boolq",
        "winogrande",
        "ARC-Easy",
        "boolq",
        "winogrande",
        "ARC-Easy",
        "boolq",
    ]
    some = commonsense(folder, names=["ARC-Easy", "boolq"], metric="accuracy")
    assert (some.name, some.metrics[:2], set(some.train.part)) == (
        "boolq+ARC-Easy",
        ("accuracy", "loss"),
        {"boolq", "ARC-Easy"},
    )
    assert some.fingerprint != task.fingerprint
    assert commonsense(folder, names="boolq").name == "boolq"


def test_every_row_of_test_counts_and_equal_prompts_of_train_stay_together(tmp_path):
    folder = write(tmp_path, {"boolq": 10})
    twice = [row("boolq", i // 2) for i in range(20)]
    for split in ("train", "test"):
        (tmp_path / "boolq" / f"{split}.json").write_text(json.dumps(twice))
    task = commonsense(folder)
    assert (len(task.test), len(task.train), len(task.dev)) == (20, 9, 1)
    assert all(len(references) == 2 for references in task.train.references)


def test_it_is_read_as_it_is_shared(shared):
    task = commonsense(str(shared / "data"))
    sizes = {"boolq": (9427, 3270), "ARC-Easy": (2251, 2376), "ARC-Challenge": (1119, 1172), "openbookqa": (4957, 500)}
    for name, (train, test) in sizes.items():
        assert task.test.part.count(name) == test
        own = commonsense(str(shared / "data"), names=[name])
        assert sum(map(len, own.train.references + own.dev.references)) == train
    assert len(task.dev) == 120 + 120 + 111 + 120
    assert [text for text in task.test.prompt if "<" in text[:5]] == []


def suite_rule(task, text):
    """The suite's rule written as a scan: at every character, whether one of the answers begins there."""
    text = text.lower()
    for place in range(len(text)):
        for answer in FORMS[task]:
            if text[place : place + len(answer)] == answer:
                return answer
    return None


def test_answers_are_read_by_the_suite_s_rule():
    words = ["The correct answer is", "True", "false", "untrue", "answer", "Answer2", "answer10", "answer5:", "option1", "SOLUTION2", "ending4", "ending5", ""]  # fmt: skip
    draw = random.Random(0)
    for _ in range(500):
        text = " ".join(draw.choices(words, k=draw.randint(0, 5)))
        for task in FORMS:
            assert text_metrics.chosen(task, text) == suite_rule(task, text), (task, text)
    assert list(text_metrics.CHOICES) == list(FORMS)
    assert text_metrics.chosen("boolq", "It is untrue; false.") == "true"


def test_accuracy_is_per_task_and_their_mean():
    tasks = ["boolq", "ARC-Easy", "ARC-Easy", "boolq", "ARC-Easy"]
    references = [["the correct answer is true"], ["… answer1"], ["… answer2"], ["… false"], ["… answer5"]]
    texts = ["True!", "answer1 or answer2", "answer1 or answer2", "I do not know", " the correct answer is ANSWER5 "]
    names = ("accuracy", "accuracy_boolq", "accuracy_ARC-Easy", "accuracy_piqa")
    found = text_metrics.compute(names, texts, references, tasks)
    assert math.isnan(found.pop("accuracy_piqa"))
    assert found == {
        "accuracy": pytest.approx(7 / 12),
        "accuracy_boolq": 0.5,
        "accuracy_ARC-Easy": pytest.approx(2 / 3),
    }


def test_how_an_answer_is_read_is_stated():
    stated = text_metrics.rules(("loss", "accuracy", "accuracy_piqa", "answer_match", "bleu"))
    assert stated.keys() == {"accuracy", "accuracy_piqa", "answer_match"}
    assert "first match of solution1|solution2 in the lower-cased answer" in stated["accuracy_piqa"]
    assert "after the last ####" in stated["answer_match"]
    assert text_metrics.rules(("accuracy", "f1")) == {}  # of a classifier


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"names": ["piqa"]}, r"task.names must be one or more different names from boolq, winogrande, ARC-Easy, .* \(got piqa\)"),
        ({"names": ["boolq", "boolq"]}, r"task.names must be .* \(got boolq, boolq\)"),
        ({"names": []}, r"task.names must be .* \(got none\)"),
        ({"limit": 2}, r"task.limit must be at least 3, one row per task \(got 2\)"),
        ({"generate_rows": 0}, r"task.generate_rows must be at least 3, one row per task \(got 0\)"),
        ({"metric": "bleu"}, r"task.metric must be loss, accuracy, .* \(got bleu\)"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_used(settings, says, folder):
    with pytest.raises(SettingError, match=says) as error:
        commonsense(folder, **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"answer": "true"}, "boolq/train.json .*: the output of row 2 must state the answer 'true', found by the first match"),
        ({"output": ""}, "boolq/train.json .*: the response of row 2 is empty"),
        ({"instruction": None}, "boolq/train.json .*: the prompt of row 2 is empty"),
        ({"instruction": 7}, r"boolq/train.json .*: the prompt of row 2 must be text \(got 7\)"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used(change, says, folder, tmp_path):
    rows = [row("boolq", i) for i in range(4)]
    rows[1] |= change
    file = tmp_path / "data" / "boolq" / "train.json"
    file.write_text(json.dumps(rows))
    with pytest.raises(SettingError, match=says):
        commonsense(folder)
    file.unlink()
    with pytest.raises(SettingError, match=r"task.path must hold boolq/train.json \(.*: in boolq it holds test.json\)"):
        commonsense(folder)
    with pytest.raises(SettingError, match=r"task.path must hold a folder of boolq, piqa"):
        commonsense(str(tmp_path / "data" / "boolq"))


def test_it_runs_and_states_its_rule(folder, tmp_path):
    words = [
        "task=commonsense",
        f"task.path={folder}",
        "task.names=[boolq,ARC-Easy]",
        "task.metric=accuracy",
        "tiny=true",
    ]
    inside(*words, "model=tiny_llama", "model.width=32", "rank=2", "method=adalora", f"out={tmp_path / 'out'}")
    (file,) = (tmp_path / "out").glob("*/summary.json")
    summary = json.loads(file.read_text())
    assert (summary["status"], summary["task"], summary["metric"]["name"]) == ("finished", "boolq+ARC-Easy", "accuracy")
    assert set(summary["test"]) == {"accuracy", "loss", "accuracy_boolq", "accuracy_ARC-Easy"}
    parts = (summary["test"]["accuracy_boolq"], summary["test"]["accuracy_ARC-Easy"])
    assert summary["test"]["accuracy"] == pytest.approx(sum(parts) / 2)
    assert set(summary["answer_rules"]) == {"accuracy", "accuracy_boolq", "accuracy_ARC-Easy"}
    assert "true|false" in summary["answer_rules"]["accuracy_boolq"]
