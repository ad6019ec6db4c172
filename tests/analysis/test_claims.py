"""Claims: what is refused, the canonical form and its hash, and what claims.json keeps of earlier versions."""

import copy
import hashlib
import json
from datetime import datetime

import pytest

from analysis import claims
from analysis.claims import ClaimsError

CONTENT = {
    "alpha": 0.05,
    "family": "page",
    "checkpoint": "last",
    "looks": [4, 6],
    "seeds": 8,
    "margins": {"cola": 0.02, "sst2": 0.005},
    "contrasts": [
        {"name": "map", "of": "adalora", "against": "uniform", "tasks": ["cola", "sst2"], "ranks": [2, 8]},
        {"name": "cost", "of": "adalora", "against": "full", "tasks": ["cola"], "ranks": [2]},
        {"name": "heads", "of": "full", "against": "head", "tasks": ["cola"], "ranks": None},
    ],
    "assay": {"of": "lora@8", "against": "lora@2"},
}
ARMS = ["full", "head", *(f"{method}@{rank}" for method in ("lora", "adalora", "uniform") for rank in (2, 8))]
TASKS = ["cola", "sst2"]


def changed(**parts):
    return {**copy.deepcopy(CONTENT), **parts}


def contrast(**parts):
    return {"contrasts": [{**CONTENT["contrasts"][0], **parts}]}


def test_each_claim_has_its_arms_margin_and_level():
    found = claims.read(CONTENT, TASKS, ARMS)
    each = [(*claim.arms(ARMS), claim.task, claim.margin) for claim in found.each]
    assert each == [
        ("adalora@2", "uniform@2", "cola", 0.02),
        ("adalora@8", "uniform@8", "cola", 0.02),
        ("adalora@2", "uniform@2", "sst2", 0.005),
        ("adalora@8", "uniform@8", "sst2", 0.005),
        ("adalora@2", "full", "cola", 0.02),
        ("full", "head", "cola", 0.02),
    ]
    assert [found.level(task) for task in TASKS] == [0.05 / 6] * 2
    by_table = claims.read(changed(family="table"))
    assert [by_table.level(task) for task in TASKS] == [0.05 / 4, 0.05 / 2]
    assert (found.stages, claims.read(changed(looks=[4, 8])).stages) == ((4, 6, 8), (4, 8))


def test_a_contrast_compares_everywhere_unless_it_names_tasks_and_budgets():
    short = changed(
        contrasts=[{k: v for k, v in c.items() if k not in ("tasks", "ranks")} for c in CONTENT["contrasts"]]
    )
    found = claims.read(short, TASKS, ARMS)
    assert [(c.tasks, c.ranks) for c in found.contrasts] == [
        (("cola", "sst2"), ranks) for ranks in [(2, 8)] * 2 + [None]
    ]
    with pytest.raises(ClaimsError, match=r"claims.contrasts\[0\] must have the part ranks"):
        claims.read(short)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"margin": 1}, r"claims must have only the parts alpha, assay, .* \(got margin\)"),
        ({"alpha": 0.5}, r"claims.alpha must be a number between 0 and 0.5 \(got 0.5\)"),
        ({"alpha": True}, r"claims.alpha must be a number between 0 and 0.5 \(got True\)"),
        ({"family": "study"}, r"claims.family must be page or table \(got study\)"),
        ({"checkpoint": "first"}, r"claims.checkpoint must be last or best \(got first\)"),
        ({"seeds": 1}, r"claims.seeds must be a whole number of at least 2 \(got 1\)"),
        ({"looks": [6, 4]}, r"claims.looks must rise and end at or below the 8 planned seeds \(got \[6, 4\]\)"),
        ({"looks": [6, 9]}, r"claims.looks must rise and end at or below the 8 planned seeds \(got \[6, 9\]\)"),
        ({"looks": [1, 4]}, r"claims.looks must be a whole number of at least 2 \(got 1\)"),
        ({"looks": 4}, r"claims.looks must be a list of numbers of seeds \(got 4\)"),
        ({"margins": {"cola": 0.02}}, r"claims.margins must have the part sst2 \(got cola\)"),
        ({"margins": {"cola": 0.02, "sst2": 0}}, r"claims.margins.sst2 must be a number above 0 \(got 0\)"),
        ({"margins": {"cola": float("nan"), "sst2": 1}}, r"claims.margins.cola must be a number above 0 \(got nan\)"),
        ({"metrics": {"rte": "accuracy"}}, r"claims.metrics must have only the parts cola, sst2 \(got rte\)"),
        ({"contrasts": []}, r"claims.contrasts must be a list of at least one contrast"),
        ({"contrasts": CONTENT["contrasts"][0]}, r"claims.contrasts must be a list of at least one contrast"),
        (contrast(against="adalora"), r"claims.contrasts\[0\] must compare two different arms \(got adalora twice\)"),
        (contrast(of="dora"), r"claims.contrasts\[0\].of must be a method of the study: full, .* \(got dora\)"),
        (contrast(tasks=["rte"]), r"claims.contrasts\[0\].tasks must be among cola, sst2 \(got rte\)"),
        (contrast(tasks=["cola", "cola"]), r"claims.contrasts\[0\].tasks must name each task once"),
        (contrast(ranks=[2, 4]), r"claims.contrasts\[0\].ranks must be among \[2, 8\] \(got \[2, 4\]\)"),
        (contrast(ranks=None), r"claims.contrasts\[0\].ranks must be among \[2, 8\] \(got None\)"),
        (contrast(of="full", against="head"), r"ranks must be null, because its methods have no budgets"),
        (contrast(rank=2), r"claims.contrasts\[0\] must have only the parts against, .* \(got rank\)"),
        ({"contrasts": [CONTENT["contrasts"][0]] * 2}, r"claims.contrasts must have different names \(got map twice\)"),
        ({"contrasts": [CONTENT["contrasts"][0], {**CONTENT["contrasts"][0], "name": "again",
          "of": "uniform", "against": "adalora"}]}, r"must state each comparison once \(got adalora and uniform on cola"),
        ({"assay": {"of": "lora@8"}}, r"claims.assay must have the part against \(got of\)"),
        ({"assay": {"of": "lora", "against": "lora@2"}}, r"claims.assay.of must be an arm of the study: .* \(got lora\)"),
        ({"assay": {"of": "lora@2", "against": "lora@2"}}, r"claims.assay must compare two different arms"),
    ],
)  # fmt: skip
def test_claims_that_cannot_be_judged_are_a_sentence(parts, message):
    with pytest.raises(ClaimsError, match=message):
        claims.read(changed(**parts), TASKS, ARMS)


def test_a_study_without_an_assay_cannot_claim():
    with pytest.raises(ClaimsError, match="claims must have the part assay"):
        claims.read({key: value for key, value in CONTENT.items() if key != "assay"})
    with pytest.raises(ClaimsError, match=r"claims must have the parts .* \(got None\)"):
        claims.read(None)


def test_the_hash_is_that_of_the_canonical_json_and_knows_no_order_or_defaults(tmp_path):
    found = claims.read(CONTENT, TASKS, ARMS)
    claims.write(tmp_path, found, "a study", 0)
    content = json.loads((tmp_path / "claims.json").read_text())
    canonical = json.dumps(content["claims"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert claims.digest(found) == content["hash"] == hashlib.sha256(canonical.encode()).hexdigest()
    assert content["claims"] == CONTENT
    shuffled = {key: CONTENT[key] for key in sorted(CONTENT) if key not in ("alpha", "family", "checkpoint")}
    assert claims.digest(claims.read(shuffled)) == content["hash"]
    assert claims.digest(claims.read(changed(alpha=0.01))) != content["hash"]
    assert claims.digest(claims.read(changed(metrics={"cola": "matthews"}))) != content["hash"]


def test_the_same_claims_leave_the_file_and_new_ones_keep_the_old(tmp_path):
    assert claims.load(tmp_path) is None
    first, second, third = (claims.read(changed(alpha=alpha)) for alpha in (0.05, 0.04, 0.03))
    declared = claims.write(tmp_path, first, "a study", 0)
    assert claims.load(tmp_path) == declared
    assert (declared.study, declared.claims, declared.changes) == ("a study", first, ())
    assert abs(datetime.now().astimezone() - datetime.fromisoformat(declared.declared)).total_seconds() < 60
    before = (tmp_path / "claims.json").read_bytes()
    assert claims.write(tmp_path, first, "a study", 5) == declared
    assert (tmp_path / "claims.json").read_bytes() == before

    assert claims.write(tmp_path, second, "a study", 0).changes == (), "nothing was run under the first version"
    claims.write(tmp_path, third, "a study", 7)
    claims.write(tmp_path, first, "a study", 9)
    found = claims.load(tmp_path)
    assert found.claims == first
    assert [(change.claims, change.runs) for change in found.changes] == [(second, 7), (third, 9)]
    assert [change.hash for change in found.changes] == list(map(claims.digest, (second, third)))


def test_claims_after_the_first_run_are_refused(tmp_path):
    with pytest.raises(
        ClaimsError, match=r"claims must be declared before the first run .* with 3 runs and no claims.json"
    ):
        claims.write(tmp_path, claims.read(CONTENT), "a study", 3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"claims": {}}', '{"changes": 3}'])
def test_a_damaged_file_is_a_sentence(tmp_path, text):
    (tmp_path / "claims.json").write_text(text)
    with pytest.raises(ClaimsError, match=r"claims.json cannot be used: it is not a claims file; restore it"):
        claims.load(tmp_path)


def test_claims_edited_by_hand_are_noticed(tmp_path):
    claims.write(tmp_path, claims.read(CONTENT), "a study", 0)
    path = tmp_path / "claims.json"
    path.write_text(path.read_text().replace("0.005", "0.05"))
    with pytest.raises(
        ClaimsError, match=r"cannot be used: its claims do not have the hash [0-9a-f]{12}, so they were"
    ):
        claims.load(tmp_path)
