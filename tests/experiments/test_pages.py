"""The tables of the studies' pages are those of the committed results."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t

from adarank.runs import predictions
from adarank.runs.packed import read_records, record_files
from analysis.load import read_runs
from analysis.tables import tables
from experiments import pages
from tests.analysis.conftest import write_run

ROOT = Path(__file__).resolve().parents[2]
STUDIES = sorted((ROOT / "docs" / "studies").glob("*.md"))


@pytest.mark.parametrize("page", STUDIES, ids=lambda page: page.stem)
def test_a_page_holds_the_tables_of_its_study_and_the_command_that_regenerates_them(page, tmp_path):
    copy = tmp_path / page.name
    copy.write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
    pages.rewrite(copy, pages.written(page.stem))
    assert copy.read_text(encoding="utf-8") == page.read_text(encoding="utf-8")
    assert f"experiments/studies/{page.stem}.yaml" in copy.read_text(encoding="utf-8")


def test_every_study_that_has_run_has_a_page():
    studies = {path.stem for path in (ROOT / "experiments" / "studies").glob("*.yaml")}
    run = {study for study in studies if record_files(pages.RESULTS / study / "seeds")}
    elsewhere = {"every_method", "controls"}  # docs/methods.md, docs/earlier_studies.md
    assert run - elsewhere == {page.stem for page in STUDIES}


def test_an_arm_s_line_and_a_claim_s_are_those_of_its_runs(tmp_path):
    report = pages.report_of("central", tmp_path)
    claims, arms = [*pages.claim_tables(report, 0), pages.arm_table(report.tables[0])]
    records = {
        arm: {
            record["config"]["seed"]: record
            for _, record in read_records(pages.RESULTS / "central" / "seeds" / "supersense" / arm)
        }
        for arm in ("adalora", "uniform")
    }

    def metric(arm, name):
        return {seed: record["summary"]["metric"][name] for seed, record in records[arm].items()}

    runs = {arm: metric(arm, "test_last") for arm in records}
    line = next(line for line in arms.rows if line[0] == "adalora@2")
    values = np.array(list(runs["adalora"].values()))
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    assert line[1:5] == ["0.004", "8", f"{values.mean():.4f} ± {half:.4f}", f"{values.std(ddof=1):.4f}"]
    means = [float(line[3].split()[0]) for line in arms.rows]
    assert means == sorted(means, reverse=True)
    declared = json.loads((pages.RESULTS / "central" / "claims.json").read_text())
    names = [contrast["name"] for contrast in declared["claims"]["contrasts"]]
    assert [line[0].partition(":")[0] for line in claims.rows] == names
    both = np.array([runs["adalora"][seed] - runs["uniform"][seed] for seed in range(8)])
    half = t.ppf(1 - 0.05 / len(names) / 2, 7) * both.std(ddof=1) / np.sqrt(8)
    interval = f"[{both.mean() - half:+.4f}, {both.mean() + half:+.4f}]"
    (line,) = [line for line in claims.rows if line[0].startswith("where the rank goes: adalora − uniform")]
    assert line[1:4] == ["adalora better", f"{both.mean():+.4f}", interval]
    columns = {
        arm: [predictions.unpacked(records[arm][seed]["predictions"]) for seed in range(8)]
        for arm in ("adalora", "uniform")
    }
    right = {arm: np.array([c["label"] == c["prediction"] for c in of_arm], float) for arm, of_arm in columns.items()}
    gain = right["adalora"] - right["uniform"]
    n, m = gain.shape
    left = gain - gain.mean(1, keepdims=True) - gain.mean(0, keepdims=True) + gain.mean()
    variance = gain.mean(1).var(ddof=1) / n + gain.mean(0).var(ddof=1) / m - (left**2).sum() / (n - 1) / (m - 1) / n / m
    assert line[6] == f"{variance**0.5:.4f}"
    on_dev = np.array([metric("adalora", "last")[seed] - metric("uniform", "last")[seed] for seed in range(8)])
    half = t.ppf(0.975, 7) * on_dev.std(ddof=1) / np.sqrt(8)
    assert line[7] == f"{on_dev.mean():+.4f} [{on_dev.mean() - half:+.4f}, {on_dev.mean() + half:+.4f}]"


def test_an_arm_says_how_many_of_its_seeds_did_not_learn(tmp_path):
    for seed in range(3):
        write_run(tmp_path, "lora", seed, metric__test=0.8, metric__majority=0.5)
        write_run(tmp_path, "adalora", seed, metric__test=0.5 if seed else 0.81, metric__majority=0.5)
    (table,) = tables(read_runs(tmp_path))
    assert [row[2] for row in pages.arm_table(table).rows] == ["3", "3 (2 did not learn)"]


def test_the_trials_are_those_that_chose_the_rates():
    chosen = json.loads((pages.RESULTS / "central" / "tuning" / "supersense" / "rates.json").read_text())
    (grid,) = pages.trial_tables("central")
    lora = next(line for line in grid.rows if line[0] == "lora@2")
    assert lora[1].count(" · ") == len(chosen["lora@2"]["means"]) - 1
    best = max(mean for _, mean in chosen["lora@2"]["means"])
    assert f"**{chosen['lora@2']['rate']:g}: {best:.4f}**" in lora[1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("central.md", None, "PAGE must be a file that exists (got "),
        ("central.md", "no tables", "central.md must hold the line <!-- tables --> twice (got 0)"),
        ("nothing.md", f"{pages.MARKER}\n{pages.MARKER}\n", "PAGE must be named after a study in experiments/results"),
    ],
)
def test_a_page_that_cannot_be_written_is_refused_in_one_sentence(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    words = [sys.executable, str(ROOT / "experiments" / "pages.py"), str(tmp_path / name)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    if content is not None:
        assert (tmp_path / name).read_text() == content
