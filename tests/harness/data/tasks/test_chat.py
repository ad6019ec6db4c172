"""Conversations as read: what becomes the prompt and its reference, and what is refused."""

import json

import pytest

from adarank.errors import SettingError
from adarank.harness.data.tasks.base import hold_out
from adarank.harness.data.tasks.chat import chat


def turns(*texts, first="user"):
    """Turns by user and assistant alternately."""
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def write(folder, conversations, split="train", column="messages"):
    lines = [json.dumps({column: messages}) for messages in conversations]
    (folder / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines))


def test_the_last_assistant_turn_is_the_reference_and_dev_is_carved(tmp_path):
    write(tmp_path, [turns(f"a{i}", "b", "c", "d", "a question without an answer") for i in range(20)])
    task = chat(str(tmp_path))
    assert (len(task.train), len(task.dev), task.test) == (18, 2, None)
    assert task.train.references[0] == ["d"]
    assert task.train.turns[0] == turns("a0", "b", "c") or task.dev.turns[0] == turns("a0", "b", "c")
    assert (task.task_type, task.metrics[:2], task.max_length) == ("generate", ("loss", "bleu"), 1024)
    assert task.options == {"max_new_tokens": 128, "generate_rows": None, "template": "chat"}
    held = hold_out(task, 4)
    assert (len(held.train), len(held.dev), len(held.dev.turns)) == (14, 4, 4)
    assert len(chat(str(tmp_path), limit=3).train) == 3


def test_every_turn_enters_the_fingerprint(tmp_path):
    found = set()
    for talk in (turns("a", "b"), turns("a", "c"), turns("x", "b", "a", "b"), turns("x", "c", "a", "b")):
        write(tmp_path, [talk, turns("q", "r")])
        found.add(chat(str(tmp_path)).fingerprint)
    assert len(found) == 4


def test_the_column_has_a_name_and_other_keys_of_a_message_are_not_read(tmp_path):
    talk = [{"role": "user", "content": "a", "name": "Eve"}, {"role": "assistant", "content": "b", "tool_calls": None}]
    write(tmp_path, [talk, turns("c", "d")], column="talk")
    task = chat(str(tmp_path), messages="talk")
    assert task.train.turns + task.dev.turns in ([turns("a"), turns("c")], [turns("c"), turns("a")])
    with pytest.raises(
        SettingError, match=r"task.messages=messages: train.jsonl .* has no column messages; its columns"
    ):
        chat(str(tmp_path))


def test_the_hub_s_form_is_that_of_the_files(tmp_path):
    pytest.importorskip("datasets")
    write(tmp_path, [turns(f"a{i}", "b") for i in range(10)])
    write(tmp_path, [turns("x", "y")], "test")
    task = chat(name=str(tmp_path), test="test")
    assert (len(task.train), len(task.dev), task.test.turns) == (9, 1, [turns("x")])
    assert task.fingerprint == chat(str(tmp_path)).fingerprint
    with pytest.raises(SettingError, match=r"task=chat needs either task.path=FOLDER or task.name=NAME"):
        chat()


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        (turns("a", "b", "c"), None),
        ("hello", r"row 2 must have a list of messages, each with role and content \(got 'hello'\)"),
        (["hello"], "row 2 must have a list of messages"),
        (None, "row 2 must have a list of messages"),
        ([*turns("a"), {"role": "bot", "content": "b"}], r"the role of turn 2 in row 2 must be system, user or assistant \(got 'bot'\)"),
        ([*turns("a"), {"content": "b"}], r"the role of turn 2 in row 2 must be .* \(got None\)"),
        (turns("a", " "), r"turn 2 of row 2 \(assistant\) is empty; every turn needs text"),
        ([{"role": "user"}, *turns("a", "b")], r"turn 1 of row 2 \(user\) is empty"),
        ([{"role": "user", "content": [1]}], r"the content of turn 1 in row 2 must be text \(got \[1\]\)"),
        (turns("a"), "row 2 has no assistant turn, so that none of its tokens would count"),
        ([], "row 2 has no assistant turn"),
        (turns("a", "b", first="assistant"), "row 2 begins with an assistant turn; it must begin with a system or user"),
        (turns("a\ud83d", "b"), "turn 1 in row 2 contains half of a character"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named(messages, says, tmp_path):
    write(tmp_path, [turns("a", "b"), messages])
    if says is None:
        assert len(chat(str(tmp_path)).train) == 1
        return
    with pytest.raises(SettingError, match=f"^train.jsonl .task.path=.*: {says}") as error:
        chat(str(tmp_path))
    assert "\n" not in str(error.value)
