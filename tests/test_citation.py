"""CITATION.cff agrees with the package, and has what version 1.2.0 of the format requires."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent


def test_the_citation_is_of_this_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert citation.keys() >= {"cff-version", "message", "title", "authors"}  # required by the format
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert [citation[key] for key in ("title", "version", "license")] == [
        project[key] for key in ("name", "version", "license")
    ]
    assert citation["authors"] == [{"name": "The adarank developers"}]
    for page in re.findall(r"docs/\w+\.md", citation["message"]):
        assert (ROOT / page).is_file()
