"""Tokens kept on disk are the tokens, and nothing else is ever read for them."""

import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest

from adarank.harness.data import cache
from adarank.harness.data.batches import encode
from adarank.harness.data.task_types import TASK_TYPES
from adarank.harness.data.tasks.base import Prompts, Split, Task
from adarank.harness.models import byte_tokenizer

SPLIT = Split(["one", "", "zwölf, dreizehn"], ["a", "bb", ""], np.array([0, 1, 1]))


@pytest.fixture(autouse=True)
def at(tmp_path, monkeypatch):
    monkeypatch.setenv("ADARANK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Counting:
    """A tokenizer that counts its calls."""

    def __init__(self):
        self.inner, self.calls = byte_tokenizer(), 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.inner(*args, **kwargs)


def test_read_again_they_are_the_same(at):
    tokenizer = Counting()
    first = encode(SPLIT, tokenizer, 12, "data train")
    again = encode(SPLIT, tokenizer, 12, "data train")
    assert tokenizer.calls == 1
    assert again.tokens == first.tokens == encode(SPLIT, tokenizer, 12).tokens
    assert again.pad == first.pad
    assert len(list(at.iterdir())) == 1


def test_data_split_length_and_tokenizer_all_count():
    tokenizer, other = byte_tokenizer(), byte_tokenizer()
    other.add_tokens(["zw"])
    left = byte_tokenizer()
    left.truncation_side = "left"
    keys = {
        cache.key(tokenizer, rows="data train", max_length=12),
        cache.key(tokenizer, rows="data dev", max_length=12),
        cache.key(tokenizer, rows="other train", max_length=12),
        cache.key(tokenizer, rows="data train", max_length=13),
        cache.key(other, rows="data train", max_length=12),
        cache.key(left, rows="data train", max_length=12),
    }
    assert len(keys) == 6
    before = cache.key(tokenizer, rows="data train", max_length=12)
    tokenizer(["a longer text"], truncation=True, max_length=4)  # leaves its state in the tokenizer
    assert cache.key(tokenizer, rows="data train", max_length=12) == before


PROMPTS = Prompts(["a fine day", "rain"], [["a long description"], ["another, longer description"]])
LENGTHS = {"max_new_tokens": 20, "generate_rows": None, "beams": 1}


@pytest.mark.parametrize("task_type", ["classify", "generate", "seq2seq"])
def test_with_a_cache_every_task_has_the_tokens_that_it_has_without(task_type, monkeypatch, at):
    """Whatever was cached before: another split, other data, other lengths."""
    tokenizer = byte_tokenizer()
    rows = SPLIT if task_type == "classify" else PROMPTS
    task = Task("t", rows, rows.take([1, 0]), None, (), ("loss",), 32, "f", task_type, LENGTHS)
    tasks = [task, replace(task, max_length=14), replace(task, options={**LENGTHS, "max_new_tokens": 10})]
    tasks += [replace(task, train=rows.take([1]), fingerprint="g")]

    def tokens():
        encoded = [TASK_TYPES[task_type].encode(t, split, tokenizer) for t in tasks for split in ("train", "dev")]
        return [e.tokens if task_type == "classify" else (e.input_ids, e.labels) for e in encoded]

    cached = tokens()
    assert cached == tokens()
    assert list(at.iterdir())
    monkeypatch.setenv("ADARANK_CACHE", "")
    assert cached == tokens()


def test_a_damaged_file_is_made_again(at):
    tokenizer = Counting()
    first = encode(SPLIT, tokenizer, 12, "data train")
    (file,) = at.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert encode(SPLIT, tokenizer, 12, "data train").tokens == first.tokens
    assert tokenizer.calls == 2
    assert file.read_bytes() == whole


@pytest.mark.parametrize("spoil", [lambda at: at.write_text("a file"), lambda at: at.symlink_to("/proc/nowhere")])
def test_where_it_cannot_be_written_the_run_goes_on_with_one_warning(at, caplog, spoil):
    spoil(at)
    for split in ("train", "dev", "test"):
        assert len(encode(SPLIT, byte_tokenizer(), 12, f"data {split}")) == 3
    (warning,) = caplog.messages
    assert warning.startswith(f"{at} cannot be ")
    assert warning.endswith("; the run continues without a cache")


@pytest.mark.parametrize("setting", [None, "~/of/mine"])
def test_a_user_without_a_home_has_no_cache_and_one_warning(setting):
    """A process under a user number that no account has, as in a container."""
    code = "from adarank.harness.data import cache; print([cache.folder() for _ in range(3)])"
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME", "ADARANK_CACHE")}
    environment |= {} if setting is None else {"ADARANK_CACHE": setting}
    words = ["unshare", "--user", "--map-user=12345", "--map-group=12345"]
    if shutil.which("unshare") is None or subprocess.run([*words, "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    done = subprocess.run([*words, sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == "[None, None, None]\n", done.stderr
    (line,) = done.stderr.splitlines()
    assert line.endswith("cannot be found (this user has no home folder); the run continues without a cache")


def test_empty_means_none(monkeypatch, tmp_path):
    monkeypatch.setenv("ADARANK_CACHE", "")
    assert cache.folder() is None
    monkeypatch.delenv("ADARANK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.folder() == tmp_path / "adarank"


def test_many_at_once_never_read_half_a_file():
    rows = {"input_ids": [[i, i + 1] for i in range(3000)]}
    wrong = []

    def work():
        for _ in range(20):
            cache.write("same", rows)
            if cache.read("same") != rows:
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
