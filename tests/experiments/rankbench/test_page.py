"""docs/rankbench.md says what the committed result says."""

import re
from pathlib import Path

import pytest

from experiments import forecast
from experiments.pages import MARKER
from experiments.rankbench import figure, read, run
from experiments.rankbench.settings import parse

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "rankbench.md").read_text(encoding="utf-8")
RECORD = run.opened(run.RESULTS, None)
LINEAR = "linear,ranks=8x3,decay=0.8,noise=0.1"
PLANTED, ENCODER = "network,ranks=4x2+2x2", "minilm_l6,ranks=8x9,noise=0.1"


def test_the_tables_are_those_of_the_committed_result():
    _, between, _ = PAGE.split(MARKER)
    titles = re.findall(r"\*\*(\S+): (\d+) triplets", between)
    tables = [
        read.table(RECORD, name, int(budget) // len(RECORD["settings"][name]["modules"])) for name, budget in titles
    ]
    assert between.strip() == "\n".join(tables).strip()
    assert PLANTED in dict(titles)


def found(case, name=PLANTED, rank=1):
    """The row of a case."""
    return next(row for row in read.rows_of(RECORD, name, rank) if row.case == case)


def test_the_findings_quote_the_committed_result():
    text = " ".join(PAGE.partition("## Findings")[2].partition("## Add a method")[0].split())
    own, retrained, _ = (panel.cells for panel in figure.panels(RECORD)[:3])
    quoted = [str(own[1, 1]), str(own[1, 3]), str(own[1, 6]), str(retrained[1, 12]), str(own[2, 6])]
    quoted.append(", ".join(f"{own[0.5, modules].mean:.2g}" for modules in (1, 3, 6)))
    assert not [number for number in quoted if number not in text]
    assert f"three modules are left ({own[2, 1].mean:.2g}, {own[2, 3].mean:.2g})" in text
    assert {own[budget, 12].verdict for budget in (0.5, 1, 2, 4)} == {"undecided"}
    assert [own[4, modules].verdict for modules in (1, 3, 6)] == ["better", "undecided", "undecided"]
    finders = ["adalora", "lora_pruned", "para", "adalora, score=magnitude", "adalora, score=contribution"]
    assert {f"{found(case).share:.2f}" for case in finders} == {"0.97", "1.00"}
    for case, share in {"salientlora": 0.33, "eva": 0.31, "igulora": 0.28, "sora": 0.57}.items():
        assert f"{found(case).share:.2f}" == f"{share:.2f}"
    assert {
        case for case in ("igulora", "pissa", "corda", "olora", "vera") if found(case).uniform.verdict == "worse"
    } == {
        row.case
        for row in read.rows_of(RECORD, PLANTED, 1)
        if row.uniform and row.uniform.verdict == "worse" and "," not in row.case
    }
    assert [f"{found(case).uniform.mean:.2g}" for case in ("igulora", "pissa", "vera")] == ["1.8", "2.5", "4.3"]
    small = [s for name, s in RECORD["settings"].items() if not name.startswith("minilm")]
    cells = [(case, cell) for s in small for held in s["cells"].values() for case, cell in held.items()]
    ends = [cell["rate"] in (min(map(float, cell["dev"])), max(map(float, cell["dev"]))) for _, cell in cells]
    assert f"In {sum(ends)} of the {len(ends)} cells of the random bases the chosen rate" in text
    lowest = [cell for case, cell in cells if case in ("pissa", "corda", "olora", "vera")]
    assert all(cell["rate"] == min(map(float, cell["dev"])) for cell in lowest)
    adaptive, planted = (found(case, ENCODER, 2) for case in ("adalora", "oracle"))
    quoted = [str(ratio) for ratio in (planted.uniform, adaptive.uniform, adaptive.oracle)]
    assert not [number for number in [*quoted, f"{adaptive.share:.2f}".lstrip("0")] if number not in text]
    assert planted.uniform.verdict == adaptive.uniform.verdict == "undecided"
    equal = {row.case: row.uniform for row in read.rows_of(RECORD, "minilm_l6,ranks=2x36,noise=0.1", 2)}
    assert f"both have {equal['adalora']} times" in text
    assert str(equal["adalora"]) == str(equal["adalora, allocator=uniform"])
    lora, para, adaptive = (found(case, LINEAR, 2) for case in ("lora", "para", "adalora"))
    assert RECORD["settings"][LINEAR]["bounds"]["2"] == [0.0, pytest.approx(0.3925, abs=1e-4)]
    assert [f"{row.loss:.2g}" for row in (lora, adaptive)] == ["0.39", "0.1"]
    assert (f"{para.loss:.0e}", round(adaptive.misplaced, 2)) == ("2e-04", 0.33)
    verdicts = [row.uniform.verdict for row in read.rows_of(RECORD, LINEAR, 2) if row.uniform]
    better = verdicts.count("better") - 1  # the planted map is no method
    assert (
        f"Of the methods, {better} beat uniform LoRA decidedly there, and {verdicts.count('worse')} lose to it" in text
    )
    losses = {row.case: row.loss for row in read.rows_of(RECORD, PLANTED, 1)}
    assert min(losses, key=losses.get) == "oracle"
    assert [f"{losses[case]:.1g}" for case in ("oracle", "para", "adalora")] == ["4e-05", "0.0005", "0.02"]


def of_control(name, rank):
    """AdaLoRA's loss ÷ its uniform control's."""
    cells = RECORD["settings"].get(name, {}).get("cells", {}).get(str(rank), {})
    return read.compare(read.losses(cells.get("adalora")), read.losses(cells.get("adalora, allocator=uniform")))


def test_the_table_of_strengths_and_depths_is_that_of_the_committed_result():
    knobs = ["strength=0.3,noise=0.1", "noise=0.1", "strength=3,noise=0.1", "noise=1"]
    knobs += ["noise=0.1,depth=early", "noise=0.1,depth=late"]
    for count in (1, 3, 6, 12):
        cells = [read._marked(of_control(f"network,ranks={24 // count}x{count},{knob}", 2)) for knob in knobs]
        assert f"| {count} | {' | '.join(cells)} |" in PAGE
    text = " ".join(PAGE.split())
    assert ", ".join(str(of_control(f"network,ranks={24 // k}x{k},noise=1", 2)) for k in (1, 3)) in text
    even = {row.case: row.uniform for row in read.rows_of(RECORD, "network,ranks=2x12,noise=0.1", 2)}
    assert not [case for case, ratio in even.items() if ratio and ratio.verdict == "better"]
    assert f"AdaLoRA has {even['adalora']} times" in text
    assert f"control has {even['adalora, allocator=uniform']} times" in text


def test_the_forecast_is_that_of_the_committed_cases():
    cases = forecast.cases_of(ROOT / "experiments" / "results" / "rankbench_early.json", 0.05)
    found = {row["feature"]: row for row in forecast.forecast(cases)}
    text = " ".join(PAGE.split())
    gains = sum(case.gain for case in cases)
    assert f"In {gains} of {len(cases)} settings and budgets it is decided that AdaLoRA beats its control" in text
    for name in ("agreement", "slope", "gini"):
        low, high = found[name]["interval"]
        assert f"{found[name]['auroc']:.2f} [{low:.2f}, {high:.2f}]" in text, name
    for case in cases:
        name, rank = case.case.split(", r = ")
        assert case.gain == (of_control(name, rank).verdict == "better")


def test_every_case_of_the_committed_result_was_tuned_by_the_rule_of_today():
    for setting in RECORD["settings"].values():
        for cells in setting["cells"].values():
            for case, cell in cells.items():
                devs = {float(lr): dev for lr, dev in cell["dev"].items() if dev is not None}
                assert cell["rate"] == min(lr for lr, dev in devs.items() if dev <= 1.1 * min(devs.values())), case


def test_every_planted_module_holds_what_its_setting_says():
    for name, setting in RECORD["settings"].items():
        for ranks in setting["planted"].values():
            assert tuple(sorted(filter(None, ranks), reverse=True)) == parse(name).ranks


def test_the_result_is_small_enough_to_be_committed():
    assert run.RESULTS.stat().st_size < 300_000
