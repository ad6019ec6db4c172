"""The tasks that generate: what they read, how dev is carved, what they refuse."""

import json

import numpy as np
import pytest

from adarank.errors import SettingError
from adarank.harness.data.tasks import prompts
from adarank.harness.data.tasks.base import Prompts
from adarank.harness.data.tasks.e2e import e2e
from adarank.harness.data.tasks.gsm8k import gsm8k
from adarank.harness.data.tasks.instruct import instruct

MRS = "".join(
    f'"name[Pub {i}], area[riverside]","Pub {i} is by the river, text {j}."\n' for i in range(12) for j in "ab"
)


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def restaurants(tmp_path):
    (tmp_path / "devset.csv").write_text("mr,ref\n" + MRS)
    (tmp_path / "testset_w_refs.csv").write_text('"mr","ref"\n"name[X]","X."\n"name[X]","It is X."\n"name[Y]","Y."\n')
    return tmp_path


def test_e2e_has_a_row_a_meaning_representation_and_carves_whole_ones(restaurants):
    task = e2e(str(restaurants))
    assert (task.task_type, task.metrics[0], task.max_length) == ("generate", "loss", 256)
    assert task.test == Prompts(["name[X]\n", "name[Y]\n"], [["X.", "It is X."], ["Y."]])
    assert (len(task.train), len(task.dev)) == (6, 6)
    assert not set(task.train.prompt) & set(task.dev.prompt)
    assert all(len(own) == 2 for own in task.train.references + task.dev.references)
    assert task.train.prompt == [p for p in prompts.grouped(*_all(restaurants)).prompt if p in task.train.prompt]
    (restaurants / "trainset.csv").write_text('mr,ref\n"name[T]","T."\n')
    with_train = e2e(str(restaurants), limit=5)
    assert with_train.train.prompt == ["name[T]\n"]
    assert list(map(len, (with_train.train, with_train.dev, with_train.test))) == [
        1,
        2,
        2,
    ]  # whole ones, 2 references each
    assert with_train.fingerprint != task.fingerprint


def test_a_limit_takes_prompts_from_the_whole_file():
    """E2E is sorted, so that its first rows describe a few restaurants only."""
    rows = Prompts([f"{i:03}" for i in range(200)], [["r"] * (1 + i % 3) for i in range(200)])
    kept = prompts.limited(rows, 60)
    assert kept.prompt == sorted(kept.prompt)
    assert 57 < sum(map(len, kept.references)) <= 60
    assert 60 < np.mean([int(prompt) for prompt in kept.prompt]) < 140
    assert all(own == rows.references[int(prompt)] for prompt, own in zip(kept.prompt, kept.references, strict=True))
    assert prompts.limited(rows.take(range(199, -1, -1)), 60).prompt == kept.prompt[::-1], "whatever the file's order"
    assert len(prompts.limited(rows, 1).prompt) == 1


def _all(folder):
    from adarank.harness.data.tasks.readers import comma_separated

    columns = comma_separated(folder / "devset.csv", "x")
    return "x", [f"{mr}\n" for mr in columns["mr"]], columns["ref"]


def test_e2e_as_it_is_shared(shared):
    task = e2e(str(shared / "data"))
    assert (len(task.train), len(task.dev), len(task.test)) == (447, 100, 630)
    assert sum(map(len, task.test.references)) == 4693
    assert sum(map(len, task.train.references + task.dev.references)) == 4672


def test_gsm8k_as_it_is_shared(shared):
    task = gsm8k(str(shared / "data"))
    assert (len(task.train), len(task.dev), len(task.test)) == (6973, 500, 1319)
    assert task.metrics == ("loss", "answer_match")
    assert task.test.prompt[0].startswith("Question: Janet")
    assert task.test.prompt[0].endswith("\nAnswer:")
    assert all(own[0].rpartition("####")[1] for own in task.test.references)


def test_the_carve_depends_on_the_prompts_alone():
    rows = Prompts([f"p{i}" for i in range(20)], [[f"r{i}"] for i in range(20)])
    back = Prompts(rows.prompt[::-1], rows.references[::-1])
    dev, train = prompts.carved(rows, 5)
    assert prompts.carved(back, 5)[0] == dev
    assert train.prompt == [p for p in rows.prompt if p not in dev.prompt]
    assert len(prompts.carved(Prompts(["a", "b"], [["x"], ["y"]]), 5)[0]) == 1
    with pytest.raises(SettingError, match="a single prompt"):
        prompts.carved(Prompts(["a"], [["x"]]), 5)


def test_instruct_reads_two_kinds_of_columns(tmp_path):
    jsonl(tmp_path / "train.jsonl", [{"prompt": f"say {i}", "response": str(i)} for i in range(20)])
    task = instruct(str(tmp_path))
    assert (len(task.train), len(task.dev), task.test) == (18, 2, None)
    assert task.train.prompt[0].startswith("say ")
    assert task.train.prompt[0].endswith("\n")
    alpaca = [
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"instruction": "Sing.", "input": "", "output": "La"},
    ]
    jsonl(tmp_path / "train.jsonl", alpaca)
    jsonl(tmp_path / "dev.jsonl", alpaca[:1])
    task = instruct(str(tmp_path), metric="exact_match")
    assert task.metrics[:2] == ("exact_match", "loss")
    assert task.train.prompt == [
        "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n",
        "### Instruction:\nSing.\n\n### Response:\n",
    ]
    jsonl(tmp_path / "train.jsonl", [{"query": "q", "answer": "a", "prompt": "no"}])
    jsonl(tmp_path / "dev.jsonl", [{"query": "q", "answer": "b"}])
    task = instruct(str(tmp_path), prompt="query", response="answer")
    assert task.dev == Prompts(["q\n"], [["b"]])


def test_instruct_from_a_folder_that_datasets_reads(tmp_path):
    pytest.importorskip("datasets")
    jsonl(tmp_path / "train.jsonl", [{"prompt": f"say {i}", "response": str(i)} for i in range(10)])
    jsonl(tmp_path / "test.jsonl", [{"prompt": "say x", "response": "x"}])
    task = instruct(name=str(tmp_path), test="test")
    assert (len(task.train), len(task.dev), task.test) == (9, 1, Prompts(["say x\n"], [["x"]]))
    with pytest.raises(SettingError, match=r"task.dev=validation: task.name=.* has no split validation"):
        instruct(name=str(tmp_path), dev="validation")


TWO = [{"prompt": "a", "response": "b"}, {"prompt": "c", "response": "d"}]


@pytest.mark.parametrize(
    ("rows", "settings", "says"),
    [
        ([{"prompt": "a", "answer": "b"}], {}, r"task.response=response: train.jsonl .* has no column response"),
        ([{"prompt": "a", "response": " "}], {}, r"train.jsonl .*: the response of row 1 is empty; every row"),
        ([{"prompt": "a", "response": "b"}, {"prompt": None, "response": "b"}], {}, "the prompt of row 2 is empty"),
        ([{"prompt": "a", "response": 3}], {}, r"the response of row 1 must be text \(got 3\)"),
        ([{"instruction": "", "output": "b"}], {}, "the prompt of row 1 is empty"),
        ([{"prompt": "a", "response": "b"}], {}, "a single prompt, which cannot be split"),
        ([{"prompt": "a", "response": "b"}], {"prompt": "promt"}, "task.prompt=promt: .* its columns are prompt"),
        ([{"prompt": "a", "response": "b"}], {"name": "also"}, "task=instruct needs either"),
        (TWO, {"limit": 0}, "task.limit must be at least 1 \\(got 0\\)"),
        (TWO, {"metric": "f1"}, r"task.metric must be loss, bleu, .* \(got f1\)"),
        ([], {}, "has no rows"),
    ],
)  # fmt: skip
def test_what_instruct_refuses(rows, settings, says, tmp_path):
    jsonl(tmp_path / "train.jsonl", rows)
    with pytest.raises(SettingError, match=says) as error:
        instruct(str(tmp_path), **settings)
    assert "\n" not in str(error.value)


def test_folders_without_the_files_and_columns(tmp_path, restaurants):
    with pytest.raises(SettingError, match="has no train file"):
        instruct(str(tmp_path / "."))
    with pytest.raises(SettingError, match=r"must hold GSM8K's train.jsonl"):
        gsm8k(str(tmp_path))
    (restaurants / "testset_w_refs.csv").write_text("mr,text\na,b\n")
    with pytest.raises(SettingError, match=r"testset_w_refs.csv .* has no column ref"):
        e2e(str(restaurants))
    (restaurants / "devset.csv").unlink()
    with pytest.raises(SettingError, match="challenge's devset"):
        e2e(str(restaurants))
    with pytest.raises(SettingError, match="task=gsm8k without"):
        gsm8k()


def test_a_metric_that_cannot_be_computed_cannot_choose(restaurants, monkeypatch):
    from adarank.harness.data.metrics import texts as text_metrics

    monkeypatch.setattr(text_metrics, "find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"task.metric=meteor cannot be computed: nltk is not installed"):
        e2e(str(restaurants), metric="meteor")
    assert e2e(str(restaurants)).metrics == ("loss", "bleu", "rougeL", "meteor", "cider")
