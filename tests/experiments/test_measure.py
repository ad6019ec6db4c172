"""A study's probe: what is refused, what is measured once, and the studies that have one, whole at tiny size."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from adarank.errors import SettingError
from adarank.harness.data.tasks import movie_reviews
from adarank.probe import cli
from adarank.runs.files import write_json
from adarank.runs.packed import read_records
from analysis import claims, forgetting, measures, prefixes, pruning, report
from experiments import measure, pages, study
from tests.experiments.studies import STUDY
from tests.experiments.test_protocol import ROOT, in_this_one
from tests.experiments.test_run import reviews

CLAIMS = {
    "metrics": {"t": "stsb"},
    "margins": {"t": 0.02},
    "contrasts": [{"name": "forgets less", "of": "adalora", "against": "lora"}],
    "assay": {"of": "adalora@2", "against": "full"},
}
STUDIES = ROOT / "experiments" / "studies"
MEASURED = ("forgetting", "forgetting_language", "every_rank", "pruning")


def read(**parts):
    probe = {"options": "--stsb $HERE --delta", "claims": CLAIMS, **parts}
    return study.read({**STUDY, "probe": {key: value for key, value in probe.items() if value is not None}})


def test_a_study_may_declare_claims_about_what_is_measured():
    found = read()
    assert (found.claims, found.rates_per) == (None, "method"), "its metric is judged as before"
    asked = found.probe
    assert (asked.trials, asked.arms[:2], asked.claims.seeds) == (False, ("full", "lora@2"), 2)
    assert [claim.arms(asked.arms) for claim in asked.claims.each] == [
        ("adalora@2", "lora@2"),
        ("adalora@8", "lora@8"),
    ]
    assert read(claims=None, arms=["full"], trials=True).probe == measure.Measurement(
        "--stsb $HERE --delta", ("full",), True, None
    )


def test_areas_are_compared_by_method_and_by_the_prefixes_of_its_runs():
    of_area = {
        **CLAIMS,
        "metrics": {"t": "aurac"},
        "contrasts": [{"name": "area", "of": "adalora", "against": "full"}],
        "assay": {"of": "lora", "against": "lora_prefixes"},
    }
    assert read(claims=of_area).probe.claims.each[0].rank is None
    with pytest.raises(SettingError, match=r"probe.claims.assay.of must be an arm of the study: .*lora_prefixes"):
        read(claims={**of_area, "assay": {"of": "lora@2", "against": "lora"}})


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"options": None}, r"probe must have the part options, and may have arms, claims, trials \(got"),
        ({"option": 1}, r"probe must have the part options"),
        ({"arms": ["lora"]}, r"probe.arms must be arms of the study: full, lora@2, .* \(got lora\)"),
        ({"options": "--with b"}, r"probe.options must be options of adarank probe for single runs \(got --with b: "),
        ({"options": "--help"}, r"probe.options must be .* \(got --help: --help\)"),
        ({"options": "--stsb 'b"}, r"probe.options must be .* \(got --stsb 'b: No closing quotation\)"),
        ({"options": "--dleta"}, r"probe.options must be .* \(got --dleta: unrecognized arguments: --dleta\)"),
        ({"options": "--delta --rows many"}, r"probe.options must be .* invalid int value: 'many'\)"),
        ({"arms": "lora@2"}, r"probe.arms must be a list of distinct names \(got lora@2\)"),
        ({"trials": "no"}, r"probe.trials must be true or false \(got no\)"),
        ({"claims": {**CLAIMS, "looks": [3]}}, r"probe.claims must have the parts of claims except looks"),
        ({"claims": {**CLAIMS, "metrics": {}}}, r"^probe.claims.metrics.t must be one of stsb, text, aurac \(got None"),
        ({"claims": {**CLAIMS, "margins": {}}}, r"^probe.claims.margins must have the part t"),
    ],
)
def test_a_probe_that_cannot_be_followed_is_refused(parts, says):
    with pytest.raises(SettingError, match=says):
        read(**parts)


def test_environment_variables_are_filled_in(monkeypatch):
    monkeypatch.setenv("HERE", "/a")
    assert read().probe.words == ["--stsb", "/a", "--delta"]
    monkeypatch.delenv("HERE")
    with pytest.raises(SettingError, match=r"probe.options needs the environment variable HERE, which is not set"):
        read().probe.words  # noqa: B018


def test_finished_runs_of_an_arm_are_measured_once(tmp_path, monkeypatch, capsys):
    def folder(name, arm, state="finished", files=(), seed=0, weights=True):
        (tmp_path / name / "adapter").mkdir(parents=True)
        write_json(tmp_path / name / "status.json", {"state": state})
        write_json(tmp_path / name / "summary.json", {"arm": arm, "seed": seed})
        for file in (*files, *(["adapter/adapter.json"] if weights else [])):
            write_json(tmp_path / name / file, {})

    folder("new", "lora@2")
    folder("half", "lora@2", files=["delta.json"])
    folder("done", "lora@2", files=["delta.json", "forgetting.json"])
    folder("other", "adalora@2")
    folder("diverged", "lora@2", state="diverged")
    folder("trial", "lora@2", seed=100)
    folder("unpacked", "lora@2", weights=False)
    calls = []
    probe = SimpleNamespace(
        run=lambda command, env: calls.append(command[2:]) or SimpleNamespace(returncode=len(calls) - 1)
    )
    monkeypatch.setattr(measure, "subprocess", probe)
    asked = measure.Measurement("--stsb b --delta", ("lora@2",))
    measure.measure(asked, tmp_path, "lora@2", [0, 1])
    runs = [str(tmp_path / "half"), str(tmp_path / "new")]
    assert calls == [[*runs, "--missing", "--stsb", "b", "--delta"]]
    assert f"{tmp_path}: unpacked cannot be measured without weights" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        measure.measure(asked, tmp_path, "lora@2", [0, 1], backwards=True)
    assert stopped.value.code == 1, "what cannot be measured ends the protocol"
    assert calls[1][:2] == runs[::-1], "a process that helps begins with the last run"
    measure.measure(asked, tmp_path, "full", [0, 1])
    assert len(calls) == 2


@pytest.mark.parametrize("name", MEASURED)
def test_the_number_of_runs_is_the_one_that_the_study_states(name):
    path = STUDIES / f"{name}.yaml"
    found = study.load(path)
    tuned = [method for method, about in found.methods.items() if "rates" in about]
    (task,) = found.tasks
    tried = sum(
        len(study.rates_of(found, task, method)) * len(seeds)
        for method in tuned
        for _, seeds in study.trials(found, method)
    )
    stated = re.search(r"# Cost: (\d+) trials(?: \([^)]*\))? and (\d+) runs of the comparison", path.read_text())
    assert (tried, len(study.cells(found)) * len(found.seeds)) == tuple(map(int, stated.groups()))
    command = f"experiments/studies/{name}.yaml --jobs 2 --out runs/{name} --results experiments/results/{name}"
    assert f"python experiments/protocol.py {command}" in path.read_text()


def sentences(folder):
    """STS-B as its distribution has it, of random texts."""
    (folder / "STS-B").mkdir()
    draw = np.random.default_rng(0)
    texts = ["".join(draw.choice(list("abcdefgh "), 12)) + "." for _ in range(80)]
    lines = [f"g\tf\ty\t0\t{i % 6 + 0.5}\t{texts[i]}\t{texts[40 + i]}" for i in range(40)]
    for split in ("train", "dev", "test"):
        (folder / "STS-B" / f"sts-{split}.csv").write_text("\n".join(lines) + "\n")
    return folder


def restaurants(folder):
    """E2E as its distribution has it, of few meaning representations, and a text to forget."""
    rows = [f'"name[Pub {i}], area[riverside]","Pub {i} is by the river."' for i in range(24)]
    for name, kept in (("devset.csv", rows), ("testset_w_refs.csv", rows[:6])):
        (folder / name).write_text("\n".join(["mr,ref", *kept]))
    (folder / "text.txt").write_text("The river is by the pub.\nA pub is a house.\n")
    return folder


def at_tiny_size(content, data):
    """The study with one rate, three seeds and little to measure."""
    settings = {"tiny": True, "holdout": 24, "train.eval_every": 12}
    if "e2e" in content["tasks"]:
        settings |= {"model": "tiny_llama", "holdout": 4}
        content["tasks"] = {"e2e": {"settings": {"task": "e2e", "task.path": str(restaurants(data))}}}
    content |= {"settings": settings, "tuning": [100], "seeds": [0, 1, 2], "extend": 0}
    probe = content["probe"]
    for pattern, short in {
        r"--rows \d+": "--rows 12 --passes 1",
        r"--retrain \d+": "--retrain 2",
        "1,2,4,8,16": "1,16",
    }.items():
        probe["options"] = re.sub(pattern, short, probe["options"])
    if len(content["budgets"]) > 1:
        content["budgets"] = [1, 16]
    for method in (method for method in content["methods"].values() if "rates" in method):
        method["rates"] = method["rates"][1:2]
    return content


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURED)
def test_one_command_tunes_compares_measures_and_judges(name, tmp_path, monkeypatch):
    monkeypatch.setenv("STSB", str(sentences(tmp_path)))
    monkeypatch.setenv("TEXT", str(tmp_path / "text.txt"))
    monkeypatch.setattr(movie_reviews, "_reviews", reviews)
    probes = []

    def probed(command, env):
        probes.append(command[2:])
        return SimpleNamespace(returncode=cli.main(command[2:]))

    monkeypatch.setattr(measure, "subprocess", SimpleNamespace(run=probed))
    content = at_tiny_size(yaml.safe_load((STUDIES / f"{name}.yaml").read_text()), tmp_path)
    file, out, results = tmp_path / f"{name}.yaml", tmp_path / "out", tmp_path / "results" / name
    file.write_text(yaml.safe_dump(content))
    words = [file, "--out", out, "--results", results]
    done = in_this_one(words)
    assert done.status == 0, done.err
    asked = study.load(file)
    records = dict(read_records(results))
    measured = {path for path, record in records.items() if record.get("measures")}
    wanted = {
        path
        for path, record in records.items()
        if record["summary"]["arm"] in asked.probe.arms and (asked.probe.trials or "tuning" not in Path(path).parts)
    }
    assert measured == wanted
    page = report.load(out / "seeds")
    if asked.probe.claims is None:
        assert not (results / "probe_claims.json").exists()
        (grid,) = [table for table in tables_of(page) if table.title.startswith("What pruning costs")]
        assert {row[-1] for row in grid.rows} == {"3"}
    else:
        assert claims.load(results, measures.FILE).claims == asked.probe.claims
        judged = json.loads((results / "probe_verdicts.json").read_text())["claims"]
        assert [row["name"] for row in judged] == [c.name for c in asked.probe.claims.contrasts]
        assert {row["pairs"] for row in judged} == {3}
        assert page.measured[0][0].title.startswith("Declared beforehand: ")
    monkeypatch.setattr(pages, "RESULTS", results.parent)
    written = "\n".join(pages.written(name))
    for title in {
        "forgetting": ["Declared beforehand: zero-shot STS-B", forgetting.OVER_SEEDS],
        "forgetting_language": ["Declared beforehand: held-out text", forgetting.OVER_SEEDS],
        "every_rank": ["Declared beforehand: AURAC", prefixes.TITLE, "cut by SVD"],
        "pruning": [pruning.TITLE],
    }[name]:
        assert title in written
    assert re.search(r"Trials: (rotten_tomatoes|e2e), mean on dev", written)
    if asked.claims is None:
        assert "the assay shows" not in written.partition("Declared beforehand")[0], (
            "of LoRA's ranks, which nobody declared"
        )
    if name == "pruning":
        again = len(probes)
        assert (in_this_one(words).status, len(probes)) == (0, again), "nothing is measured twice"
        read = in_this_one(["none.yaml", "--out", tmp_path / "elsewhere", "--results", results, "--read"])
        assert read.status == 0, read.err


def tables_of(page):
    from analysis.format_table import further_tables

    return [table for each in page.tables for table in further_tables(each)]
