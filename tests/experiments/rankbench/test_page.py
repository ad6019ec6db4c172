"""docs/rankbench.md, and what other pages say of RankBench, is what the committed results say."""

import math
import re
from pathlib import Path
from statistics import fmean

import pytest

from experiments import forecast
from experiments.pages import MARKER
from experiments.rankbench import figure, read, run
from experiments.rankbench.settings import GROUPS, parse

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "rankbench.md").read_text(encoding="utf-8")
RECORD = run.opened(run.RESULTS, None)
EARLY = ROOT / "experiments" / "results" / "rankbench_early.json"
RATIO = re.compile(r"(?<![\w.+-])\d[\d.e-]* \[\d[\d.e-]*, \d[\d.e-]*\]")
RANDOM = [name for name in RECORD["settings"] if parse(name).base in ("linear", "network")]


def text_of(page):
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


def all_rows():
    for setting in RECORD["settings"].values():
        for rank in setting["cells"]:
            yield from read.rows(setting, int(rank))


def found(case, name, rank=2):
    """The row of a case."""
    return next(row for row in read.rows_of(RECORD, name, rank) if row.case == case)


def of_modules(count, knobs="noise=0.1"):
    """The setting in which `count` of twelve modules share 24 planted triplets."""
    return parse(f"network,ranks={24 // count}x{count},{knobs}").name


def auroc(row, area="auroc", interval="interval"):
    low, high = row[interval]
    return f"{row[area]:.2f} [{low:.2f}, {high:.2f}]"


def within(row):
    return auroc(row, "within", "within_interval")


def test_the_tables_are_those_of_the_committed_result():
    _, between, _ = PAGE.split(MARKER)
    titles = re.findall(r"\*\*(\S+): (\d+) triplets", between)
    tables = [read.summary(RECORD, list(RECORD["settings"]), "adalora")]
    tables += [
        read.table(RECORD, name, int(budget) // len(RECORD["settings"][name]["modules"])) for name, budget in titles
    ]
    assert between.strip() == "\n".join(tables).strip()
    assert {GROUPS[group].settings[0] for group in ("planted", "linear", "even")} <= dict(titles).keys()


@pytest.mark.parametrize("page", ["docs/rankbench.md", "docs/findings.md", "README.md", "docs/earlier_studies.md"])
def test_every_ratio_with_an_interval_is_one_of_the_committed_result(page):
    known = {str(r) for row in all_rows() for r in (row.control, row.uniform, row.oracle, row.own_map) if r}
    known |= {str(ratio) for panel in figure.panels(RECORD) for ratio in panel.cells.values()}
    known |= {of(row) for row in forecast.forecast(forecast.cases_of(EARLY, 0.05)) for of in (auroc, within)}
    text = text_of(page).partition("<!-- tables -->")[0]
    quoted = RATIO.findall(text)
    assert not [ratio for ratio in quoted if ratio not in known]
    assert quoted or page == "docs/earlier_studies.md"


def test_where_adalora_beats_its_control_and_where_not():
    for noise in ("0.1", "1"):
        verdicts = {
            (budget, count): found("adalora", of_modules(count, f"noise={noise}"), int(2 * budget)).control.verdict
            for budget in (0.5, 1, 2, 4)
            for count in (1, 3, 6, 12)
        }
        better = {place for place, verdict in verdicts.items() if verdict == "better"}
        expected = {(0.5, 1), (0.5, 3), (0.5, 6), (1, 1), (1, 3), (1, 6), (2, 1), (2, 3), (4, 1)}
        assert better == expected, noise
    text = " ".join(PAGE.partition("## Findings")[2].split())
    for count in (1, 3, 6, 12):
        assert str(found("adalora", of_modules(count)).control) in text
        assert str(found("adalora", of_modules(count, "noise=1")).control) in text


def test_the_table_of_starts_strengths_and_depths_is_that_of_the_committed_result():
    knobs = ["strength=0.3,noise=0.1", "strength=3,noise=0.1", "noise=0.1,depth=early", "noise=0.1,depth=late"]
    for count in (1, 3, 6, 12):
        rows = [found(f"adalora, init_rank={start}", of_modules(count)) for start in (3, 6)]
        rows += [found("adalora", of_modules(count))]
        rows += [found("adalora", of_modules(count, knob)) for knob in knobs[: 2 if count == 12 else 4]]
        cells = [read._marked(row.control) for row in rows]
        cells += ["–"] * (7 - len(cells))
        assert f"| {count} | {' | '.join(cells)} |" in PAGE


def test_which_scores_and_methods_find_the_map():
    name = GROUPS["planted"].settings[0]
    text = " ".join(PAGE.partition("## Findings")[2].split())
    budgeted = [row for row in read.rows_of(RECORD, name, 2) if row.budgeted and row.case != "oracle"]
    finders = {row.case for row in budgeted if row.share > 0.95}
    for case in ("adalora", "adadora", "para", "lora_pruned"):
        assert case in finders
    best = sorted((row for row in budgeted if row.case.startswith("adalora, score=")), key=lambda row: row.loss)
    assert [row.case.partition("=")[2] for row in best[:2]] == ["magnitude", "contribution"]
    for row in (best[0], best[1], found("adalora", name), found("adalora, score=taylor", name)):
        assert str(row.uniform) in text, row.case
    for case in ("igulora", "dylora", "lora_drop", "salientlora"):
        assert found(case, name).uniform.mean > 1
    for row in budgeted:
        if row.case.endswith("allocator=uniform"):
            assert row.uniform.verdict != "better", "the gain is the map's"


def test_the_chosen_rate_lies_inside_its_grid():
    cells = [
        (name, case, cell)
        for name in RANDOM
        for held in RECORD["settings"][name]["cells"].values()
        for case, cell in held.items()
    ]
    ends = [
        (name, case)
        for name, case, cell in cells
        if f"{cell['rate']:.6g}" in (min(cell["dev"], key=float), max(cell["dev"], key=float))
    ]
    assert f"In {len(ends)} of the {len(cells)} cells of the random bases" in " ".join(PAGE.split())
    assert {len(cell["seeds"]) for _, _, cell in cells} == {10}


def test_every_planted_module_holds_what_its_setting_says():
    for name, setting in RECORD["settings"].items():
        for ranks in setting["planted"].values():
            assert tuple(sorted(filter(None, ranks), reverse=True)) == parse(name).ranks


def test_the_forecast_is_that_of_the_committed_cases():
    cases = forecast.cases_of(EARLY, 0.05)
    rows = {row["feature"]: row for row in forecast.forecast(cases)}
    gains, settings = sum(case.gain for case in cases), len({case.setting for case in cases})
    for page in ("docs/rankbench.md", "docs/findings.md"):
        text = text_of(page)
        assert f"{gains} of {len(cases)} cases" in text
        assert f"{settings} settings" in text
        for name in ("agreement", "slope", "gini", "few_modules"):
            assert auroc(rows[name]) in text, (page, name)
        for name in ("agreement", "slope", "gini", "low_budget"):
            assert within(rows[name]) in text, (page, name)
    best = max(rows[name]["within"] for name in ("agreement", "slope", "gini"))
    assert best == rows["gini"]["within"]


def test_where_all_modules_need_the_same_the_seeds_that_end_equal_lose_little():
    cell = RECORD["settings"]["network,ranks=2x12,noise=0.1"]["cells"]["2"]
    ours, control = (cell[name]["seeds"] for name in ("adalora", "adalora, allocator=uniform"))
    ratio = {seed: math.log(run["loss"] / control[seed]["loss"]) for seed, run in ours.items()}
    equal = {seed for seed, run in ours.items() if len(set(run["ranks"])) == 1}
    assert (len(equal), len(ratio)) == (4, 10)
    for seeds, value in ((equal, "1.16"), (ratio.keys() - equal, "4.2")):
        assert f"{math.exp(fmean(ratio[seed] for seed in seeds)):.3g}"[: len(value)] == value
    for page in ("docs/rankbench.md", "docs/findings.md"):
        assert re.search(r"four (of the ten )?seeds", text_of(page)), page
        assert re.search(r"1\.16\s+times", text_of(page)), page


def test_the_pairs_within_strata_differ_in_the_budget():
    cases = forecast.cases_of(EARLY, 0.05)
    pairs = [(a, b) for a in cases for b in cases if a.stratum == b.stratum and a.gain and not b.gain]
    shared = [a for a, b in pairs if a.features["low_budget"] == b.features["low_budget"]]
    assert f"{len(pairs) - len(shared)} of these {len(pairs)} pairs differ in the budget" in text_of(
        "docs/rankbench.md"
    )


def test_what_the_pages_say_of_the_pretrained_encoder():
    few, all_alike = "minilm_l6,ranks=8x9,noise=0.1", "minilm_l6,ranks=2x36,noise=0.1"
    verdicts = {
        (name, rank): found("adalora", name, rank).control.verdict for name in (few, all_alike) for rank in (1, 2, 4)
    }
    assert list(verdicts.values()) == ["better", "better", "undecided", "better", "equal", "equal"]
    assert {found("adalora", few, rank).uniform.verdict for rank in (1, 2, 4)} == {"undecided"}
    maps = {panel.title: panel.cells for panel in figure.panels(RECORD) if panel.base == "minilm_l6"}
    own, planted = (maps[f"LoRA with {whose} map ÷ uniform LoRA"] for whose in ("adalora's final", "the planted"))
    assert [own[budget, 9].verdict for budget in (0.5, 1, 2)] == ["better", "undecided", "undecided"]
    assert [planted[budget, 9].verdict for budget in (0.5, 1, 2)] == ["better", "undecided", "undecided"]
    assert own[0.5, 36].verdict == "better"
    for modules, rank in ((3, 24), (9, 8), (36, 2)):
        for budget in (0.5, 1, 2):
            if ratios := [cells[budget, modules] for cells in maps.values() if (budget, modules) in cells]:
                row = " | ".join([f"{rank} in {modules}", f"{budget:g}×", *map(read._marked, ratios)])
                assert f"| {row} |" in PAGE
    held = RECORD["settings"][all_alike]
    attends = [name.endswith(("query", "key")) for name in held["modules"]]
    seeds = held["cells"]["1"]["adalora"]["seeds"].values()
    given = sum(r for run in seeds for r, attend in zip(run["ranks"], attends, strict=True) if attend)
    share = given / sum(sum(run["ranks"]) for run in seeds)
    for page in ("docs/rankbench.md", "docs/findings.md"):
        assert f"{share:.2f} of its triplets"[1:] in text_of(page)
        assert sum(attends) == len(attends) / 3
        assert "a third of the modules" in text_of(page)


def test_the_result_is_small_enough_to_be_committed():
    assert run.RESULTS.stat().st_size < 900_000
