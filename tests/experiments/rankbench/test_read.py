"""Rows, ratios and verdicts on a record whose answers are known by hand; the table's words."""

import math

import pytest

from adarank.errors import SettingError
from experiments.rankbench import read


def cell(losses, ranks, rank=2, budgeted=True, maps=None):
    """A cell with these losses and this map for every seed; maps: the losses of the map retrained."""
    seeds = {str(seed): {"loss": loss, "ranks": ranks} for seed, loss in enumerate(losses)}
    for seed, loss in enumerate(maps or []):
        seeds[str(seed)]["map_loss"] = loss
    return {"rank": rank, "budgeted": budgeted, "rate": 0.05, "dev": {}, "seeds": seeds}


SETTING = {
    "modules": ["a", "b", "c"],
    "planted": {"0": [6, 0, 0], "1": [6, 0, 0], "2": [6, 0, 0]},
    "bounds": {"2": [0.25, 0.5]},
    "skipped": {},
    "cells": {
        "2": {
            "lora": cell([0.8, 0.8, 0.8], [2, 2, 2]),
            "oracle": cell([0.4, 0.4, 0.4], [6, 0, 0]),
            "adaptive": cell([0.38, 0.4, 0.42], [4, 2, 0], maps=[0.2, 0.2, 0.2]),
            "adaptive, allocator=uniform": cell([0.76, 0.76, 0.76], [2, 2, 2]),
            "even": cell([0.8, 0.9, 0.7], [2, 2, 2]),
            "free": cell([0.3, 0.3, 0.3], [6, 3, 0], rank=9, budgeted=False),
            "keeper": cell([0.1, 0.1, 0.1], [3, 3, 3], rank=3),
            "lost": cell([None, None, None], [0, 0, 0]),
        },
        "3": {"lora": cell([0.2, 0.2, 0.2], [3, 3, 3], rank=3)},
    },
}
ROWS = {row.case: row for row in read.rows(SETTING, 2)}


def test_a_row_says_how_much_lies_where_it_was_planted():
    adaptive = ROWS["adaptive"]
    assert (adaptive.kept, adaptive.share, adaptive.seeds) == (6, pytest.approx(4 / 6), 3)
    assert adaptive.distance == pytest.approx(4 / 12)
    assert adaptive.spearman == pytest.approx(0.866, abs=1e-3)
    assert (ROWS["oracle"].distance, ROWS["lora"].distance) == (0, pytest.approx(8 / 12))
    assert ROWS["lora"].spearman is None, "no order among equal ranks"


def test_a_map_with_more_triplets_is_as_far_from_the_planted_one_as_it_has_more():
    assert ROWS["free"].distance == pytest.approx(3 / 15)
    assert ROWS["free"].share == pytest.approx(6 / 9)
    assert ROWS["keeper"].distance == pytest.approx(9 / 15)


def test_ratios_are_to_the_references_of_the_same_mean_rank():
    assert ROWS["adaptive"].uniform.mean == pytest.approx((0.38 * 0.4 * 0.42) ** (1 / 3) / 0.8)
    assert ROWS["adaptive"].control.mean == pytest.approx((0.38 * 0.4 * 0.42) ** (1 / 3) / 0.76)
    assert ROWS["free"].control is None
    assert ROWS["adaptive"].oracle.mean == pytest.approx((0.38 * 0.4 * 0.42) ** (1 / 3) / 0.4)
    assert ROWS["adaptive"].own_map.mean == pytest.approx((0.38 * 0.4 * 0.42) ** (1 / 3) / 0.2)
    assert ROWS["keeper"].uniform.mean == pytest.approx(0.5), "it ended at a mean rank of 3"
    assert ROWS["keeper"].oracle is None, "there is none at 3"
    assert ROWS["free"].uniform.mean == pytest.approx(0.3 / 0.8), "without a budget it is compared at the one asked for"


def test_a_map_that_stayed_uniform_is_uniform_lora_and_says_nothing_of_its_own():
    assert ROWS["even"].own_map is None
    cells = {**SETTING["cells"]["2"], "mixed": cell([0.4, 0.4, 0.4], [2, 2, 2])}
    cells["mixed"]["seeds"]["1"] |= {"ranks": [6, 0, 0], "map_loss": 0.1}
    assert read.own_map(cells, "mixed") == {"0": 0.8, "1": 0.1, "2": 0.8}
    cells["mixed"]["seeds"]["2"]["ranks"] = [5, 1, 0]
    assert read.own_map(cells, "mixed") == {"0": 0.8, "1": 0.1}, "an uneven map without a run of LoRA is no uniform one"


def test_regret_is_what_lies_above_the_bound_of_the_budget():
    assert ROWS["adaptive"].regret == pytest.approx(0.4 - 0.25)
    assert ROWS["free"].regret is None


def test_diverged_runs_are_last_and_compared_with_nothing():
    assert read.rows(SETTING, 2)[-1].case == "lost"
    assert math.isnan(ROWS["lost"].loss)
    assert ROWS["lost"].uniform is None


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ([0.50, 0.51, 0.52], "better"),
        ([2.0, 2.1, 2.2], "worse"),
        ([1.0, 1.01, 0.99], "equal"),
        ([0.5, 1.0, 2.0], "undecided"),
        ([0.85, 0.86, 0.95], "undecided"),
        ([0.5], "undecided"),
    ],
)
def test_a_difference_counts_beyond_the_margin_alone(ours, verdict):
    ratio = read.compare(dict(enumerate(ours)), dict.fromkeys(range(3), 1.0))
    assert ratio.verdict == verdict
    assert ratio.interval is None or ratio.interval[0] <= ratio.mean <= ratio.interval[1]


def test_only_seeds_of_both_are_compared():
    assert read.compare({"0": 1.0, "1": 3.0}, {"1": 1.5}).mean == pytest.approx(2)
    assert read.compare({"0": 1.0}, {"1": 1.0}) is None


def test_the_table_has_a_line_per_case_with_the_decided_ratios_in_bold():
    record = {"settings": {"linear,ranks=6": SETTING}}
    lines = read.table(record, "linear,ranks=6", 2).splitlines()
    assert lines[0] == "**linear,ranks=6: 6 triplets, 6 planted, 3 seeds**"
    assert lines[2].startswith(
        "| case | triplets | in planted modules | distance | loss | above the bound | ÷ own control | ÷ uniform LoRA"
    )
    by_case = {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[1:] for line in lines[4:]}
    order = ["keeper", "free", "adaptive", "adaptive, allocator=uniform", "lora", "even", "lost"]
    assert [case for case in by_case if case != "oracle"] == order
    assert by_case["adaptive"] == [
        "6",
        "0.67",
        "0.33",
        "0.4",
        "0.15",
        "**0.53 [0.46, 0.6]**",
        "**0.5 [0.44, 0.57]**",
        "1 [0.88, 1.1]",
        "**2 [1.8, 2.3]** |",
    ]
    assert by_case["oracle"] == ["6", "1.00", "0.00", "0.4", "0.15", "–", "**0.5 [0.5, 0.5]**", "–", "– |"]
    assert by_case["lost"][3] == "diverged"
    assert by_case["free"][6] == "0.37 [0.37, 0.37]", "not bold: it holds half as many triplets again"


def test_the_summary_has_a_line_for_every_setting_and_budget_that_has_the_case():
    record = {"settings": {"linear,ranks=6": SETTING, "linear,ranks=3": {**SETTING, "cells": {}}}}
    lines = read.summary(record, list(record["settings"]), "adaptive").splitlines()
    assert lines[0] == "**adaptive in every setting, at every budget**"
    (line,) = lines[4:]
    assert line.startswith("| linear,ranks=6 | 6 | 0.67 | 0.33 (0.67) | 0.4 | **0.53 [0.46, 0.6]** |")


@pytest.mark.parametrize("record", [[], {"cells": {}}, {"benchmark": "other"}])
def test_a_file_of_another_program_is_refused(record):
    with pytest.raises(SettingError, match="--json must be a file that this program wrote"):
        read.check(record, {})


def test_runs_of_another_size_are_not_mixed_in():
    with pytest.raises(SettingError, match="--json must hold runs of the same steps, rows and learning rates"):
        read.check({"benchmark": "rankbench", "scales": {"small": {"steps": 20}}}, {"small": {"steps": 200}})
