"""What SECURITY.md claims and no other test shows, and that the tests it names exist."""

import ast
import json
import re
import sys
from pathlib import Path

import pytest

from adarank.commands.merge import _base
from adarank.errors import SettingError
from adarank.harness.models import hub, local, tiny
from tests.test_arrows import FILES

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def with_code(folder: Path, model_type: str) -> Path:
    """A saved BERT whose folder brings its own Python, which leaves a file `ran` where it is imported."""
    built = tiny("bert", width=32, layers=1).build(2)
    for part in (built.model, built.tokenizer):
        part.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "mine.Config", "AutoModelForSequenceClassification": "mine.Model"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": model_type, "auto_map": own}))
    classes = "from transformers import BertConfig as Config, BertForSequenceClassification as Model\n"
    (folder / "mine.py").write_text(f"from pathlib import Path\n{classes}Path({str(folder / 'ran')!r}).touch()\n")
    return folder


@pytest.mark.parametrize("load", [local, hub], ids=["local", "hub"])
def test_a_model_that_needs_code_of_its_repository_is_refused(tmp_path, load, monkeypatch):
    folder = with_code(tmp_path / "model", "mine")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _="": "y")  # Transformers would ask
    with pytest.raises(SettingError, match=r"needs Python code from its own repository, which adarank never runs"):
        load(str(folder)).build(2)
    assert not (folder / "ran").exists()


def test_code_beside_a_known_architecture_is_left_alone(tmp_path):
    folder = with_code(tmp_path / "model", "bert")
    built = local(str(folder)).build(2)
    assert type(built.model).__module__ == "transformers.models.bert.modeling_bert"
    assert not (folder / "ran").exists()


def test_merge_runs_no_code_of_the_base(tmp_path):
    folder = with_code(tmp_path / "model", "mine")

    class Opened:
        description = {"trained": {}, "base": None}  # noqa: RUF012

    with pytest.raises(SettingError, match="cannot be loaded"):
        _base(Opened, str(folder))
    assert not (folder / "ran").exists()


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_text_is_run_as_code_and_no_pickle_hides_in_an_array(path):
    for call in calls(path):
        name = ast.unparse(call.func)
        assert name not in ("eval", "exec", "compile", "os.system", "yaml.unsafe_load", "yaml.full_load"), name
        given = {word.arg: ast.unparse(word.value) for word in call.keywords}
        if name in ("np.load", "numpy.load"):
            assert given.get("allow_pickle", "False") == "False"
        if name == "yaml.load":
            assert "Safe" in ast.unparse(call) or given["Loader"] == "loader"  # C's safe loader where it is built
        assert given.get("trust_remote_code", "False") == "False"
        assert given.get("shell", "False") == "False"


def test_models_are_opened_without_the_code_of_their_repository():
    """Every from_pretrained of a base model, its config and its processor says so."""
    opened = [
        call
        for path in FILES
        if path.is_relative_to(ROOT / "adarank")
        for call in calls(path)
        if ast.unparse(call.func).endswith((".from_pretrained", ".from_config"))
    ]
    assert len(opened) == 8
    for call in opened:
        assert "trust_remote_code=False" in ast.unparse(call) or "**no_code" in ast.unparse(call), ast.unparse(call)


def test_the_tests_that_the_page_names_exist():
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE)
    assert len(named) > 8
    for file, test in named:
        source = (ROOT / file).read_text(encoding="utf-8")
        assert not test or f"def {test}(" in source, f"{file}::{test}"
