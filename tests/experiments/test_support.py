"""The support matrix: what pytest reports is counted, and the page shows the committed records."""

import re
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest

from experiments import support

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "support.md").read_text(encoding="utf-8")


def test_the_outcomes_of_pytest_are_counted(tmp_path):
    report = ElementTree.fromstring(
        "<testsuites><testsuite><testcase classname='a' name='good'/>"
        "<testcase classname='a' name='left'><skipped message='no GPU'/></testcase>"
        "<testcase classname='a' name='bad'><failure message='AssertionError: 1&#10;more'/></testcase>"
        "<testcase classname='' name='file'><error message='collection failure'/></testcase></testsuite></testsuites>"
    )
    assert support.count(report) == {
        "passed": 1,
        "skipped": 1,
        "failed": 2,
        "failures": {"a::bad": "AssertionError: 1", "file": "collection failure"},
    }


def test_the_selection_exists():
    for path in support.SELECTION:
        assert (ROOT / path).exists(), path


def test_the_page_has_the_table_of_the_committed_records_and_explains_every_failure():
    records = support.records()
    assert support.table(records) in PAGE
    assert {record["python"].rpartition(".")[0] for record in records} == {"3.11", "3.12", "3.13"}
    for record in records:
        assert record["passed"] > 700
        assert record["failed"] == len(record["failures"])
        if record["failed"]:
            explained = rf"^\*\*[^*]*\b{re.escape(record['name'])}\b[^*]*: {record['failed']} test"
            assert re.search(explained, PAGE, re.MULTILINE), record["name"]


@pytest.mark.parametrize(
    ("package", "extra"), [("torch", None), ("transformers", None), ("peft", "bench"), ("accelerate", "trainer")]
)
def test_the_package_asks_for_no_version_below_those_that_were_tested(package, extra):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = project["optional-dependencies"][extra] if extra else project["dependencies"]
    (least,) = (match[1] for name in asked if (match := re.fullmatch(rf"{package}>=([\d.]+)(,.*)?", name)))
    tested = [record["versions"][package].partition("+")[0] for record in support.records()]
    assert any(version == least or version.startswith(f"{least}.") for version in tested), (least, tested)
