"""Claims about what the probe measures: their values, verdicts and place in the report."""

import json

import numpy as np
import pytest

from analysis import claims, measures, report
from analysis.claims import ClaimsError
from analysis.load import read_runs
from analysis.tables import tables
from tests.analysis.test_prefixes import write_prefixes

CLAIMS = {
    "seeds": 6,
    "metrics": {"rotten_tomatoes": "stsb"},
    "margins": {"rotten_tomatoes": 0.02},
    "contrasts": [
        {"name": "method", "of": "adalora", "against": "lora"},
        {"name": "where", "of": "uniform", "against": "adalora"},
        {"name": "later", "of": "gate", "against": "adalora"},
    ],
    "assay": {"of": "adalora@2", "against": "full"},
}
ARMS = ["full", "lora@2", "adalora@2", "uniform@2", "gate@2"]
AFTER = {"full": 0.67, "lora@2": 0.69, "adalora@2": 0.807, "uniform@2": 0.806}


def declared(out, content=CLAIMS, arms=ARMS):
    return claims.write(out, claims.read(content, ["rotten_tomatoes"], arms), "mine", 0, measures.FILE)


def with_arm(write_run, out, arm, seed, rank=2, **changes):
    method, _, budget = arm.partition("@")
    kind = {"uniform": "adalora", "gate": "adalora"}.get(method, method)
    where = out / "rotten_tomatoes" / method
    folder = write_run(where, kind, seed, int(budget or rank), arm=arm, config={"arm": arm}, **changes)
    return folder


def forgetting_runs(out, write_run, seeds=6, after=AFTER):
    draw = np.random.default_rng(0)
    for arm, value in after.items():
        for seed in range(seeds):
            noise = 0.001 * draw.normal() + 0.002 * seed
            folder = with_arm(write_run, out, arm, seed)
            (folder / "forgetting.json").write_text(json.dumps({"stsb": {"before": 0.82, "after": value + noise}}))
    return tables(read_runs(out))


def test_forgetting_is_judged_by_its_own_margin_and_assay(tmp_path, write_run):
    found = forgetting_runs(tmp_path, write_run)
    ((table, measure, judged, assay, missing),) = measures.judge(found, declared(tmp_path))
    assert (table, measure.higher_is_better) == (found[0], True)
    words = {claim.contrast.name: verdict.text for claim, verdict in judged}
    assert words == {"method": "adalora@2 better", "where": "equivalent"}
    assert [claim.contrast.name for claim in missing] == ["later"], "no run of this arm was measured"
    assert assay.shows
    assert assay.estimate.mean == pytest.approx(0.137, abs=0.002)
    assert {verdict.level for _, verdict in judged} == {0.05 / 3}, "a claim without runs counts in the family, too"


def test_without_an_assay_nothing_is_equivalent(tmp_path, write_run):
    level = {**AFTER, "full": 0.80}
    ((*_, judged, assay, _),) = measures.judge(forgetting_runs(tmp_path, write_run, after=level), declared(tmp_path))
    assert not assay.shows, "it has to be three margins"
    assert judged[1][1].text == "undecided (no assay shows that this task responds)"


def test_nothing_is_judged_before_all_planned_seeds_are_measured(tmp_path, write_run):
    ((*_, judged, _, _),) = measures.judge(forgetting_runs(tmp_path, write_run, seeds=5), declared(tmp_path))
    assert {verdict.text for _, verdict in judged} == {"undecided (5 of 6 planned seeds have run)"}
    assert {verdict.interval for _, verdict in judged} == {None}


def test_a_lower_loss_of_text_is_better(tmp_path, write_run):
    runs = forgetting_runs(tmp_path, write_run)
    for path in tmp_path.rglob("forgetting.json"):
        path.write_text(json.dumps({"text": json.loads(path.read_text())["stsb"]}))
    of_text = {**CLAIMS, "metrics": {"rotten_tomatoes": "text"}, "assay": {"of": "full", "against": "adalora@2"}}
    ((*_, judged, assay, _),) = measures.judge(runs, declared(tmp_path, of_text))
    assert (judged[0][1].text, assay.shows) == ("lora@2 better", True)


def test_one_run_s_area_stands_against_those_of_separate_runs(tmp_path, write_run):
    """LoRA gains a point with every doubling; one Matryoshka run is two points below, LoRA's own prefixes ten."""
    for seed in range(6):
        for place, rank in enumerate((1, 2, 4)):
            folder = with_arm(write_run, tmp_path, f"lora@{rank}", seed, metric__test=0.7 + 0.01 * place + 0.001 * seed)
        jitter = 0.001 * seed + 0.0001 * (seed % 2)
        levels = [0.6 + 0.01 * place + jitter for place in range(3)]
        write_prefixes(folder, levels, (1, 2, 4), svd=[0.05 + level for level in levels])
        folder = with_arm(write_run, tmp_path, "matryoshka", seed, 4)
        write_prefixes(folder, [0.68 + 0.01 * place + jitter for place in range(4)], (1, 2, 4, 8))
    (table,) = tables(read_runs(tmp_path))
    values = measures.MEASURES["aurac"].values(table)
    assert values.keys() == {"lora", "lora_prefixes", "lora_svd", "matryoshka"}
    assert values["lora"][2] == pytest.approx(0.712)
    assert values["lora_prefixes"][2] == pytest.approx(0.612)
    assert values["lora_svd"][2] == pytest.approx(0.662)
    assert values["matryoshka"][3] == pytest.approx(0.6931), "over the ranks that LoRA has, not 8"
    content = {
        **CLAIMS,
        "metrics": {"rotten_tomatoes": "aurac"},
        "contrasts": [{"name": "one run", "of": "matryoshka", "against": "lora"}],
        "assay": {"of": "lora", "against": "lora_prefixes"},
    }
    names = measures.MEASURES["aurac"].names(["matryoshka", "lora@1", "lora@2", "lora@4"])
    assert names == ["matryoshka", "lora", "lora_prefixes", "matryoshka_svd", "lora_svd"]
    ((*_, judged, assay, _),) = measures.judge([table], declared(tmp_path, content, names))
    assert judged[0][1].text == "lora better"
    assert judged[0][1].difference == pytest.approx(-0.02, abs=1e-3)
    assert assay.shows


def test_an_area_has_the_direction_of_its_metric(tmp_path, write_run):
    """The run with the higher loss was called better."""
    for seed in range(6):
        for rank in (1, 2, 4):
            with_arm(write_run, tmp_path, f"lora@{rank}", seed, metric__test=1.5 + 0.001 * seed,
                     metric__higher_is_better=False)  # fmt: skip
        folder = with_arm(write_run, tmp_path, "matryoshka", seed, 4, metric__higher_is_better=False)
        write_prefixes(folder, [1.6 + 0.001 * seed + 0.0001 * (seed % 2)] * 3, (1, 2, 4))
    content = {
        **CLAIMS,
        "metrics": {"rotten_tomatoes": "aurac"},
        "contrasts": [{"name": "one run", "of": "matryoshka", "against": "lora"}],
        "assay": {"of": "lora", "against": "matryoshka"},
    }
    names = ["matryoshka", "lora"]
    ((*_, judged, assay, _),) = measures.judge(tables(read_runs(tmp_path)), declared(tmp_path, content, names))
    assert judged[0][1].text == "lora better"
    assert judged[0][1].difference == pytest.approx(0.1, abs=1e-3)
    assert assay.shows
    assert assay.estimate.mean < 0


def test_a_diverged_seed_counts_as_run_and_further_seeds_do_not(tmp_path, write_run):
    found = forgetting_runs(tmp_path, write_run, seeds=7)
    ((*_, judged, _, _),) = measures.judge(found, declared(tmp_path))
    assert {verdict.pairs for _, verdict in judged} == {6}
    for seed in (5, 6):
        (folder,) = (tmp_path / "rotten_tomatoes" / "adalora").glob(f"*-s{seed}")
        (folder / "status.json").write_text(json.dumps({"state": "diverged"}))
    ((*_, judged, _, _),) = measures.judge(tables(read_runs(tmp_path)), declared(tmp_path))
    assert {verdict.pairs for _, verdict in judged} == {5}
    assert not any("planned seeds" in verdict.text for _, verdict in judged)


@pytest.mark.usefixtures("no_pictures")
def test_the_report_and_the_terminal_have_the_verdicts(tmp_path, write_run):
    forgetting_runs(tmp_path, write_run)
    declared(tmp_path)
    found = report.load(tmp_path)
    text = report.as_text(found, 160)
    assert "Declared beforehand: zero-shot STS-B after training, Spearman" in text
    assert "the assay shows: adalora@2 − full +0.13" in " ".join(text.split())
    assert "not measured yet: 1" in " ".join(text.split())
    assert "adalora@2 − lora@2" in report.write_report(tmp_path, found).read_text()
    assert [row["verdict"] for row in measures.plain(measures.judge(found.tables, measures.load(tmp_path)))] == [
        "adalora@2 better",
        "equivalent",
    ]


def test_claims_without_a_known_measure_are_refused(tmp_path):
    declared(tmp_path, {**CLAIMS, "metrics": {"rotten_tomatoes": "accuracy"}})
    with pytest.raises(ClaimsError, match=r"rotten_tomatoes must be one of stsb, text, aurac \(got accuracy\)"):
        measures.load(tmp_path)
    assert measures.load(tmp_path / "elsewhere") is None
